"""The authors' released checkpoints: their keys and shapes told in ours, every tensor checked."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from attnorm.errors import UserError

_PREFIX = re.compile(r"^(module\.)?(network\.)?")
_ATTENTIVE_LEAVES = (
    (re.compile(r"\.(weight|bias)_$"), r".\1"),
    (re.compile(r"\.attention_weights\.attention\.0\.weight$"), ".attention.linear.weight"),
    (re.compile(r"\.attention_weights\.attention\.1\."), ".attention.norm."),
)
# torchvision's flat list of MobileNet-v2 blocks, features.1 to features.17, by timm's stages.
_MOBILENET_STAGES = (1, 2, 3, 4, 3, 3, 1)
_MOBILENET_FIRST_BLOCK = {"0.0": "conv_dw", "0.1": "bn1.norm", "1": "conv_pw", "2": "bn2"}
_MOBILENET_BLOCK = {
    "0.0": "conv_pw",
    "0.1": "bn1",
    "1.0": "conv_dw",
    "1.1": "bn2.norm",
    "2": "conv_pwl",
    "3": "bn3",
}
_MOBILENET_ENDS = {
    "features.0.0": "conv_stem",
    "features.0.1": "bn1",
    "features.18.0": "conv_head",
    "features.18.1": "bn2",
    "classifier.1": "classifier",
}


def convert_released(state: Mapping[str, Tensor], arch: str) -> dict[str, Tensor]:
    """Released weights under our names and shapes, floating-point tensors in float32.

    For ``resnet50``, ``resnet101`` and ``densenet161`` other names are timm's already; for
    ``mobilenetv2`` they are torchvision's. The heads become ``norm.attention=released``.

    Raises:
        UserError: two tensors would take the same name.
    """
    converted: dict[str, Tensor] = {}
    for released_name, tensor in state.items():
        name = _PREFIX.sub("", released_name)
        for pattern, replacement in _ATTENTIVE_LEAVES:
            name = pattern.sub(replacement, name)
        if arch == "mobilenetv2":
            name = _mobilenet_name(name)
        if name in converted:
            raise UserError(f"{released_name} and another tensor would both become {name}.")
        if name.endswith(".attention.linear.weight"):
            tensor = tensor.flatten(1)
        converted[name] = tensor.float() if tensor.is_floating_point() else tensor
    return converted


def load_released(model: nn.Module, state: Mapping[str, Tensor], arch: str) -> int:
    """Load released weights and compare every one with what the model then holds.

    Returns:
        The number of tensors loaded. Counters of batches are the only ones that may be absent.

    Raises:
        UserError: names or shapes differ from the model's.
    """
    converted = convert_released(state, arch)
    own = model.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    lacking = sorted(own.keys() - counters - converted.keys())
    foreign = sorted(converted.keys() - own.keys())
    misshapen = sorted(
        name for name in converted.keys() & own.keys() if converted[name].shape != own[name].shape
    )
    for problem, names in (
        ("lacks", lacking),
        ("has tensors unknown to it:", foreign),
        ("has other shapes in", misshapen),
    ):
        if names:
            raise UserError(
                f"The checkpoint does not fit arch={arch}: it {problem} {names[0]}"
                f" ({len(names)} such). Check --arch, and K with norm.num_components=."
            )
    model.load_state_dict(converted, strict=False)
    check_same(state, model.state_dict(), arch)
    return len(converted)


def check_same(released: Mapping[str, Tensor], ours: Mapping[str, Tensor], arch: str) -> None:
    """Hold every released tensor against ours, value by value.

    Raises:
        RuntimeError: one of them is absent or differs.
    """
    for name, tensor in convert_released(released, arch).items():
        if name not in ours or not torch.equal(ours[name].cpu(), tensor.cpu()):
            raise RuntimeError(f"{name} did not survive the conversion")


def _mobilenet_name(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    if ".attention." in name:
        module, _, leaf = name.partition(".attention.")
        leaf = f"attention.{leaf}"
    if module in _MOBILENET_ENDS:
        return f"{_MOBILENET_ENDS[module]}.{leaf}"
    match = re.fullmatch(r"features\.(\d+)\.conv\.(.+)", module)
    if match is None:
        return name
    position = int(match[1]) - 1
    parts = _MOBILENET_BLOCK if position else _MOBILENET_FIRST_BLOCK
    for stage, blocks in enumerate(_MOBILENET_STAGES):
        if position < blocks:
            return f"blocks.{stage}.{position}.{parts.get(match[2], match[2])}.{leaf}"
        position -= blocks
    return name
