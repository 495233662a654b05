"""How large a network is: all its parameters, and the multiply-accumulates of its convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from attnorm.config import ArchConfig, NormConfig
from attnorm.models.build import build_model


@register_flop_formula(torch.ops.attnorm.attentive_norm)
def _fused_attentive_norm_flops(
    x: Sequence[int],
    weight: Sequence[int],
    _bias: Sequence[int],
    head_weight: Sequence[int],
    *_args: object,
    **_kwargs: object,
) -> int:
    """The head's matrix product and those that mix γ and β, as torch counts them unfused."""
    (outputs, channels), (components, _) = head_weight, weight
    return 2 * x[0] * channels * (outputs + 2 * components)


@dataclass(frozen=True)
class Complexity:
    """``parameters``: every learnable number. ``macs``: per image, see :func:`count_macs`."""

    parameters: int
    macs: int


def complexity(
    arch: ArchConfig, norm: NormConfig, num_classes: int = 1000, image_size: int = 224
) -> Complexity:
    """Count a config's network without allocating it."""
    with FakeTensorMode():
        model = build_model(arch, norm, num_classes, load_pretrained=False)
    return Complexity(count_parameters(model), count_macs(model, image_size))


def count_parameters(model: nn.Module) -> int:
    """All parameters, those that sit directly on a normalizer (AN's γ and β) included."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, image_size: int = 224) -> int:
    """Multiply-accumulates of one (3, ``image_size``, ``image_size``) image in evaluation.

    Torch's own counter, which sees convolutions and fully connected layers (matrix products): an
    SE unit's, and an AN head's with its mixing of γ and β, are counted like any other. What a
    normalizer or an activation does per element is not, nor is any bias.
    """
    training = {module: module.training for module in model.modules()}
    weight = next(model.parameters())
    mode = weight.fake_mode if isinstance(weight, FakeTensor) else None
    counter = FlopCounterMode(display=False)
    try:
        with mode or FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), counter:
            image = torch.empty(
                1, 3, image_size, image_size, device=weight.device, dtype=weight.dtype
            )
            model.eval()(image)
    finally:
        for module, was_training in training.items():
            module.training = was_training
    return int(counter.get_total_flops()) // 2  # a multiply-accumulate is two operations
