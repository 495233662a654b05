"""Private names of other libraries, listed: after an upgrade this says which is gone, and where."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from attnorm.config import locate
from attnorm.errors import UserError
from tests.conftest import ROOT

# (import path, where it is used, what for)
PRIVATE = [
    ("torch.nn.modules.batchnorm._NormBase", "attnorm/norms/base.py", "recognises torch's norms"),
    ("threading._shutdown", "attnorm/interpreter.py", "waits for threads, as Python's end does"),
    ("atexit._run_exitfuncs", "attnorm/interpreter.py", "what is to be done at Python's end"),
    (
        "torch.distributed.distributed_c10d._get_default_store",
        "attnorm/distributed/heartbeat.py",
        "the store in which processes count that they live",
    ),
    (
        "torch.distributed.distributed_c10d._resolve_process_group",
        "attnorm/norms/statistics.py",
        "a group by its name, for an operator that cannot hold one",
    ),
    (
        "torch.UntypedStorage._new_shared",
        "attnorm/data/worker_batches.py",
        "a worker's batch in memory that the main process sees",
    ),
    (
        "torch._subclasses.fake_tensor.FakeTensorMode",
        "attnorm/models/complexity.py",
        "counts a network without its memory",
    ),
    (
        "torch.cpu._is_avx512_bf16_supported",
        "attnorm/processor.py",
        "whether bf16 is fast on this CPU",
    ),
    (
        "torch.cpu._is_amx_tile_supported",
        "attnorm/processor.py",
        "whether bf16 is fast on this CPU",
    ),
    (
        "torchvision.models.detection._utils.BalancedPositiveNegativeSampler",
        "attnorm/detection/regions.py",
        "draws regions as torchvision does",
    ),
    (
        "torchvision.models.detection._utils.BoxCoder",
        "attnorm/detection/regions.py",
        "boxes as offsets",
    ),
    (
        "torchvision.models.detection._utils.Matcher",
        "attnorm/detection/regions.py",
        "regions and the objects that they hold",
    ),
    ("torch._foreach_copy_", "attnorm/training/ema.py", "copies all tensors at once"),
    ("torch._foreach_lerp_", "attnorm/training/ema.py", "averages all tensors at once"),
    (
        "timm.models._features.FeatureGetterNet",
        "attnorm/models/registry.py",
        "features_only of a network that has its normalizer",
    ),
]
# Operators, which are found by asking for them.
OPERATORS = [
    ("mkldnn", "_linear_pointwise", "attnorm/models/cpu/products.py"),
    ("mkldnn", "_is_mkldnn_bf16_supported", "attnorm/processor.py"),
]
# Attributes of objects rather than of modules.
ATTRIBUTES = [
    (lambda: nn.BatchNorm2d(1), "_forward_pre_hooks", "attnorm/models/finetune.py"),
    (
        lambda: torch.optim.SGD([nn.Parameter(torch.zeros(1))], fused=True),
        "_step_supports_amp_scaling",
        "attnorm/training/step.py",
    ),
]


@pytest.mark.parametrize(("path", "place", "purpose"), PRIVATE, ids=lambda value: value)
def test_a_private_name_is_still_there(path: str, place: str, purpose: str) -> None:
    assert path.rpartition(".")[2] in (ROOT / place).read_text(), f"{place} uses {path} no more"
    try:
        locate(path, "private name")
    except UserError as error:
        pytest.fail(f"{path} is gone ({error}); {place} needs it: {purpose}.")


@pytest.mark.parametrize(("library", "name", "place"), OPERATORS)
def test_a_private_operator_is_still_there(library: str, name: str, place: str) -> None:
    assert f"torch.ops.{library}.{name}(" in (ROOT / place).read_text()
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    assert hasattr(getattr(torch.ops, library), name), f"{name} is gone; {place} needs it."


@pytest.mark.parametrize(("make", "name", "place"), ATTRIBUTES)
def test_a_private_attribute_is_still_there(make: object, name: str, place: str) -> None:
    assert name in (ROOT / place).read_text()
    assert callable(make)
    assert hasattr(make(), name), f"{name} is gone; {place} needs it."


def test_the_list_is_complete() -> None:
    """Imports of names that begin with an underscore, and of modules that do, from elsewhere."""
    pattern = re.compile(
        r"^\s*from (?P<module>(?:torch|timm|hydra|omegaconf|nvidia)[\w.]*) import (?P<names>.+)$"
        r"|(?P<use>\b(?:torch|nn|dist|timm|threading|atexit)(?:\.\w+)*\._[a-z]\w+)",
        re.MULTILINE,
    )
    names = [name for _, name, _ in ATTRIBUTES + OPERATORS]
    listed = " ".join([path for path, *_ in PRIVATE] + names)
    unlisted = []
    for file in sorted(Path(ROOT / "attnorm").rglob("*.py")):
        for match in pattern.finditer(file.read_text()):
            names = [match["use"]] if match["use"] else re.split(r"[,\s()]+", match["names"])
            hidden = [n for n in names if "._" in f".{n}" or "._" in (match["module"] or "")]
            unlisted += [
                f"{file.name}: {name}" for name in hidden if name.split(".")[-1] not in listed
            ]
    assert unlisted == []
