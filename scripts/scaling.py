"""How long Table 1 takes on N H100s: ``python scripts/scaling.py [--gpus 1 8 64]``.

python scripts/scaling.py                                   bounds: no speed was measured
python scripts/scaling.py --images-per-second model.json    from benchmark.py model --json

docs/scaling.md writes the formula out and says what it leaves out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attnorm.errors import UserError, exit_on_user_error
from attnorm.reporting.benchmarks.measure import markdown_table
from attnorm.reporting.scaling import (
    BYTES_PER_GRADIENT,
    Case,
    Estimate,
    Machine,
    Measurement,
    Plan,
    bounds,
    estimate,
    measured,
    parameters,
    pieces,
    read_speeds,
)
from attnorm.reporting.table1_paper import ROWS, PaperRow

NOT_MEASURED = (
    "**Bounds, not measurements: no step was timed on a GPU.** From below: the speed that memory "
    "bandwidth alone allows, and nominal links. From above: 42 % of that speed, where PyTorch's "
    "published ResNet-50 figure lies, and cautious assumptions."
)
MACHINE_OPTIONS = ("nvlink_gbytes", "network_gbytes", "step_overhead_ms")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images-per-second", type=Path, nargs="+", metavar="JSON", help="measured on one GPU"
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64], help="(1 8 64)")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="(8)")
    parser.add_argument("--global-batch", type=int, help="images per step (512; SN's row 256)")
    parser.add_argument("--epochs", type=int, default=120, help="(120)")
    parser.add_argument(
        "--eval",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="evaluate after every epoch (yes)",
    )
    parser.add_argument(
        "--nvlink-gbytes", type=float, help="all-reduce inside a node, GB/s per GPU (480 – 240)"
    )
    parser.add_argument(
        "--network-gbytes", type=float, help="between nodes, GB/s per GPU (50 – 25)"
    )
    parser.add_argument(
        "--step-overhead-ms",
        type=float,
        help="least time of a pass (0 – 10 µs × the row's operations)",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write it there as well")
    return parser.parse_args()


def report(cases: Sequence[Case], gpus: Sequence[int], plan: Plan, heading: str) -> str:
    """The page's tables: hours, what a step is made of, what was assumed."""
    evaluated = "evaluation after every epoch" if plan.evaluate else "no evaluation"
    tables = (
        heading,
        f"{plan.epochs} epochs, {evaluated}:",
        markdown_table(
            [*(_hours(row, cases, gpus, plan) for row in ROWS), _sum(cases, gpus, plan)]
        ),
        "A step, and the time in it that waits for gradients:",
        markdown_table([_step(row, cases, gpus, plan) for row in ROWS]),
        "Assumed:",
        _assumptions(cases),
    )
    return "\n\n".join(tables)


def _hours(row: PaperRow, cases: Sequence[Case], gpus: Sequence[int], plan: Plan) -> dict[str, str]:
    line = {"row": row.label}
    for count in gpus:
        estimates = [_estimate(row, case, count, plan) for case in cases]
        _add_hours(line, count, [e.hours if e else None for e in estimates])
    return line


def _sum(cases: Sequence[Case], gpus: Sequence[int], plan: Plan) -> dict[str, str]:
    """All rows together, where all are known."""
    line = {"row": "all eleven"}
    for count in gpus:
        totals: list[float | None] = []
        for case in cases:
            hours = [e.hours for row in ROWS if (e := _estimate(row, case, count, plan))]
            totals.append(sum(hours) if len(hours) == len(ROWS) else None)
        _add_hours(line, count, totals)
    return line


def _add_hours(line: dict[str, str], gpus: int, hours: Sequence[float | None]) -> None:
    line[_heading(gpus, "hours")] = _joined(hours)
    if gpus > 1:
        gpu_hours = [None if value is None else value * gpus for value in hours]
        line[_heading(gpus, "GPU hours")] = _joined(gpu_hours)


def _step(row: PaperRow, cases: Sequence[Case], gpus: Sequence[int], plan: Plan) -> dict[str, str]:
    size = BYTES_PER_GRADIENT * parameters(row.arch, row.norm) / 1e6
    speeds = [case.speeds.get((row.arch, row.norm)) for case in cases]
    line = {"row": row.label, "gradients, MB": f"{size:.1f}", "img/s of one GPU": _joined(speeds)}
    for count in gpus:
        split = pieces(row, count, plan)
        accumulated = f"{split.passes} × " if split.passes > 1 else ""
        line[_heading(count, "images each")] = f"{accumulated}{split.images}"
        estimates = [_estimate(row, case, count, plan) for case in cases]
        steps = [e.step_seconds * 1e3 if e else None for e in estimates]
        line[_heading(count, "ms")] = _joined(steps)
        if count > 1:
            waits = [e.exposed_seconds * 1e3 if e else None for e in estimates]
            line[_heading(count, "ms waiting")] = _joined(waits)
    return line


def _assumptions(cases: Sequence[Case]) -> str:
    shown: dict[str, Callable[[Machine], str]] = {
        "all-reduce inside a node, GB/s per GPU": lambda machine: f"{machine.nvlink_gbytes:g}",
        "all-reduce between nodes, GB/s per GPU": lambda machine: f"{machine.network_gbytes:g}",
        "share of backward that hides it": lambda machine: f"{machine.overlap:g}",
        "least time of a pass": _least_time,
    }
    rows: list[dict[str, Any]] = [
        {"": what, **{case.name: show(case.machine) for case in cases}}
        for what, show in shown.items()
    ]
    return markdown_table(rows)


def _least_time(machine: Machine) -> str:
    if machine.step_overhead_ms is not None:
        return f"{machine.step_overhead_ms:g} ms"
    return f"{machine.launch_us:g} µs × operations"


def _estimate(row: PaperRow, case: Case, gpus: int, plan: Plan) -> Estimate | None:
    speed = case.speeds.get((row.arch, row.norm))
    return None if speed is None else estimate(row, speed, gpus, plan, case.machine)


def _heading(gpus: int, what: str) -> str:
    return f"{gpus} GPU{'s' if gpus > 1 else ''}: {what}"


def _joined(values: Sequence[float | None]) -> str:
    """From below – from above, with three digits that count."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "not measured"
    return " – ".join(f"{v:.3g}" if v < 100 else f"{v:,.0f}" for v in known)


def _describe(measurements: Sequence[Measurement]) -> str:
    """Where the speeds come from; the hours are those of that GPU."""
    lines = ["Speeds as measured:", ""]
    for measurement in measurements:
        other = "" if "H100" in measurement.machine else " **Not an H100.**"
        lines.append(f"- {measurement.machine}: `{measurement.command}`{other}")
    return "\n".join(lines)


def main() -> None:
    arguments = parse()
    with exit_on_user_error():
        plan = Plan(
            arguments.epochs, arguments.global_batch, arguments.gpus_per_node, arguments.eval
        )
        given = {
            name: getattr(arguments, name)
            for name in MACHINE_OPTIONS
            if getattr(arguments, name) is not None
        }
        cases: Sequence[Case] = bounds()
        heading = NOT_MEASURED
        if arguments.images_per_second:
            measurements = [read_speeds(path) for path in arguments.images_per_second]
            cases, heading = [measured(measurements)], _describe(measurements)
        cases = [replace(case, machine=replace(case.machine, **given)) for case in cases]
        text = report(cases, arguments.gpus, plan, heading) + "\n"
        print(text, end="")
        if arguments.markdown:
            try:
                arguments.markdown.write_text(text)
            except OSError as error:
                raise UserError(f"--markdown {arguments.markdown}: {error.strerror}.") from error


if __name__ == "__main__":
    main()
