"""Six steps under torch.compile end where six eager steps do."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from attnorm.errors import UserError
from tests.gpu.report import Report, Setting
from tests.gpu.runs import network, synthetic, trainer

STEPS = 6
MODES = ("default", "reduce-overhead")
# Of the way that the weights went. Compiled operations round half formats elsewhere.
MOST_DIFFERENCE = {"fp32": 2e-2, "fp16": 0.3}


def run(setting: Setting, report: Report) -> None:
    for precision in MOST_DIFFERENCE if setting.on_gpu else ("fp32",):
        compare(setting, precision, report)
    accumulation_is_refused(setting, report)


def compare(setting: Setting, precision: str, report: Report) -> None:
    """Every mode beside eager steps."""
    common = [*network(setting), *synthetic(setting), "norm=an", f"precision={precision}"]
    common += ["optim.lr=0.001"]  # steps that a rounding error does not grow in
    begin, eager = weights_after(0, common), weights_after(STEPS, common)
    for mode in MODES:
        compiled = weights_after(STEPS, [*common, "compile=true", f"compile_mode={mode}"])
        error = float((compiled - eager).norm() / (eager - begin).norm())
        report.figure(f"{mode}, {precision}: difference ÷ way", error)
        report.require(
            error <= MOST_DIFFERENCE[precision],
            f"{mode}, {precision}: the weights differ by {error:.3g}",
        )


def accumulation_is_refused(setting: Setting, report: Report) -> None:
    """A graph's gradients live in its own memory, and cannot be added to."""
    common = [*network(setting), *synthetic(setting), "norm=an"]
    graphs = ["compile=true", "compile_mode=reduce-overhead", "grad_accumulation=2"]
    try:
        weights_after(1, [*common, *graphs])
    except UserError as refused:
        report.require("CUDA graph" in str(refused), f"refused for another reason: {refused}")
    else:
        report.require(False, "accumulation under CUDA graphs is not refused")


def weights_after(steps: int, overrides: list[str]) -> Tensor:
    """All parameters after this many steps from the same beginning, as one vector."""
    with tempfile.TemporaryDirectory() as folder, trainer(Path(folder), *overrides) as ours:
        batches = ours.train_loader.epoch(0)
        ours.train_step.replica.train()
        for _ in range(steps):
            ours.train_step(batches, measure_gradient=False)
        torch.compiler.reset()  # networks of the same code compete for its cache
        parameters = list(ours.state.model.parameters())
        return torch.cat([parameter.detach().flatten().double() for parameter in parameters])
