"""The heads on regions: shapes, starts, and AN on group normalization against its equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnorm.config import DetectorConfig
from attnorm.detection.heads import (
    BoxHead,
    BoxPredictor,
    MaskHead,
    MaskPredictor,
    build_box_head,
    build_mask_head,
    conv_norms,
)
from attnorm.errors import UserError
from attnorm.norms import AttentiveNorm2d, SwitchNorm2d

CHANNELS, WIDTH = 64, 48


def detector(**options: object) -> DetectorConfig:
    return DetectorConfig(name="mask_rcnn", channels=CHANNELS, fc_width=WIDTH, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("regions", [0, 3])
@pytest.mark.parametrize(
    ("box_head", "norm"),
    [("2fc", "none"), *(("4conv1fc", norm) for norm in ("none", "gn", "sn", "an"))],
)
def test_regions_become_logits_offsets_and_masks(regions: int, box_head: str, norm: str) -> None:
    config = detector(box_head=box_head, box_head_norm=norm, mask_head_norm=norm)
    box, mask = build_box_head(config), build_mask_head(config)
    features = box(torch.randn(regions, CHANNELS, 7, 7))
    assert features.shape == (regions, WIDTH) == (regions, box.out_features)
    logits, offsets = BoxPredictor(WIDTH, 5)(features)
    assert logits.shape == (regions, 5)
    assert offsets.shape == (regions, 20)
    assert BoxPredictor(WIDTH, 5, agnostic=True)(features)[1].shape == (regions, 4)
    masks = MaskPredictor(mask.out_channels, 5)(mask(torch.randn(regions, CHANNELS, 14, 14)))
    assert masks.shape == (regions, 5, 28, 28)
    # No gradient is missing where there is no region: processes of a distributed run must agree.
    (features.sum() + masks.sum()).backward()
    assert all(p.grad is not None for p in [*box.parameters(), *mask.parameters()])


def test_convolutions_have_a_bias_where_they_have_no_normalizer() -> None:
    for norm, biased in (("none", True), ("gn", False), ("sn", False), ("an", False)):
        head = build_box_head(detector(box_head="4conv1fc", box_head_norm=norm))
        convolutions = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
        assert [conv.bias is not None for conv in convolutions] == [biased] * 4


def test_each_convolution_has_its_own_number_of_components() -> None:
    head = build_box_head(
        detector(
            box_head="4conv1fc",
            box_head_norm="an",
            head_components=[2, 3, 5, 7],
            head_attention="released",
        )
    )
    norms = [m for m in head.modules() if isinstance(m, AttentiveNorm2d)]
    assert [norm.num_components for norm in norms] == [2, 3, 5, 7]
    assert {(n.backbone, n.num_groups, n.attention_name) for n in norms} == {("gn", 32, "released")}


def test_switchable_norms_use_statistics_of_no_batch() -> None:
    head = build_mask_head(detector(mask_head_norm="sn"))
    norms = [m for m in head.modules() if isinstance(m, SwitchNorm2d)]
    assert len(norms) == 4
    assert not any(norm.using_bn for norm in norms)
    x = torch.randn(3, CHANNELS, 14, 14)
    torch.testing.assert_close(head(x)[:1], head(x[:1]))


def test_layers_start_as_those_of_2019() -> None:
    torch.manual_seed(0)
    config = detector(box_head="4conv1fc")
    head, predictor = build_box_head(config), BoxPredictor(400, 50)
    linear, convolution = head.fcs[0], head.get_submodule("convs.0.conv")
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    bound = (6 / (linear.in_features + linear.out_features)) ** 0.5  # Xavier's, uniform
    assert 0.99 * bound < float(linear.weight.detach().abs().max()) <= bound
    for weight, std in (
        (predictor.cls_score.weight, 0.01),
        (predictor.bbox_pred.weight, 0.001),
        (convolution.weight, (2 / (9 * CHANNELS)) ** 0.5),  # Kaiming's, by fan-out
        (MaskPredictor(CHANNELS, 5).conv5_mask.weight, (2 / (4 * CHANNELS)) ** 0.5),
    ):
        assert float(weight.detach().std()) == pytest.approx(std, rel=0.03)
    for module in (head, predictor, MaskPredictor(CHANNELS, 5), build_mask_head(config)):
        biases = [p for name, p in module.named_parameters() if name.endswith("bias")]
        assert biases
        assert not any(bool(bias.any()) for bias in biases)


def oracle(head: BoxHead | MaskHead, x: Tensor) -> Tensor:
    """Convolution, group normalization, a mixture of affine maps (equations 6 and 7), ReLU."""
    block: Any
    for block in head.convs:
        x = nn.functional.conv2d(x, block.conv.weight, padding=1)
        groups = x.reshape(len(x), 32, -1)
        mean = groups.mean(2, keepdim=True)
        variance = (groups - mean).square().mean(2, keepdim=True)
        normalized = ((groups - mean) / (variance + block.norm.eps).sqrt()).view_as(x)
        attention = block.norm.attention
        logits = x.mean((2, 3)) @ attention.weight.T + attention.bias
        shares = 1 / (1 + (-logits).exp())
        mixed = torch.zeros_like(x)
        for k in range(block.norm.num_components):
            gamma, beta = block.norm.weight[k], block.norm.bias[k]
            affine = gamma[None, :, None, None] * normalized + beta[None, :, None, None]
            mixed = mixed + shares[:, k, None, None, None] * affine
        x = mixed.clamp(min=0)
    return x


@pytest.mark.parametrize("build", [build_box_head, build_mask_head])
def test_an_heads_compute_the_papers_equations(build: object) -> None:
    torch.manual_seed(0)
    assert callable(build)
    config = detector(box_head="4conv1fc", box_head_norm="an", mask_head_norm="an")
    single = build(config)
    double = build(config).double()
    double.load_state_dict(single.state_dict())
    size = 7 if isinstance(single, BoxHead) else 14
    x = torch.randn(3, CHANNELS, size, size)
    upstream = torch.randn(3, CHANNELS, size, size)
    expected = oracle(double, x.double())
    expected.backward(upstream.double())
    y = single.convs(x)
    y.backward(upstream)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    true = dict(double.named_parameters())
    for name, parameter in single.convs.named_parameters():
        gradient = true[f"convs.{name}"].grad
        assert gradient is not None
        assert parameter.grad is not None
        error = (parameter.grad.double() - gradient).norm() / gradient.norm()
        assert float(error) < 1e-4, name


@pytest.mark.parametrize("key", ["mask_head_norm", "fpn_norm"])
def test_attention_that_normalizes_over_a_batch_is_for_box_heads_alone(key: str) -> None:
    config = detector(box_head="4conv1fc", head_attention="released", **{key: "an"})
    with pytest.raises(UserError) as refused:
        conv_norms(key, config)
    message = str(refused.value)
    assert message.startswith(f"detector.{key}=an is not possible with detector.head_attention")
    assert f"Use detector.{key}=gn" in message
