"""Parameters and multiply-accumulates of all 20 combinations against a file of expected numbers."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import attnorm
from attnorm.models.complexity import count_macs, count_parameters
from attnorm.norms import AttentiveNorm2d
from tests.models.conftest import ARCHITECTURES, COMBINATIONS, structure

EXPECTED = json.loads((Path(__file__).parent / "expected.json").read_text())


@pytest.mark.parametrize(("arch", "norm"), COMBINATIONS)
def test_parameters_are_the_expected_ones(arch: str, norm: str) -> None:
    assert count_parameters(structure(arch, norm)) == EXPECTED[arch][norm]["parameters"]


# A network of few kinds of blocks with every normalizer, and the others with the paper's.
COUNTED = [
    pytest.param(arch, norm, marks=() if arch == "resnet50" or norm == "an" else pytest.mark.slow)
    for arch, norm in COMBINATIONS
]


@pytest.mark.parametrize(("arch", "norm"), COUNTED)
def test_macs_are_the_expected_ones(arch: str, norm: str) -> None:
    assert count_macs(structure(arch, norm)) == EXPECTED[arch][norm]["macs"]


@pytest.mark.parametrize(
    ("arch", "norm", "parameters"),
    [
        ("resnet50", "bn", 25_557_032),
        ("resnet101", "bn", 44_568_392),
        ("densenet161", "bn", 28_730_584),
        ("mobilenetv2", "bn", 3_504_872),
        ("resnet50", "se", 28_088_024),
    ],
)
def test_rows_that_timm_has_too_count_like_timm(arch: str, norm: str, parameters: int) -> None:
    assert EXPECTED[arch][norm]["parameters"] == parameters


def test_se_resnet50_is_timms_seresnet50() -> None:
    with torch.device("meta"):
        theirs = timm.create_model("seresnet50").state_dict()
    ours = structure("resnet50", "se").state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_adds_its_mixture_and_head_to_bn(arch: str) -> None:
    layers = [m for m in structure(arch, "an").modules() if isinstance(m, AttentiveNorm2d)]
    sizes = [(layer.num_components, layer.num_features) for layer in layers]
    extra = EXPECTED[arch]["an"]["parameters"] - EXPECTED[arch]["bn"]["parameters"]
    assert extra == sum(3 * k * c + k - 2 * c for k, c in sizes)
    macs = EXPECTED[arch]["an"]["macs"] - EXPECTED[arch]["bn"]["macs"]
    assert macs == sum(3 * k * c for k, c in sizes)


def test_another_head_counts_like_the_fused_one() -> None:
    """The released head replaces the bias by a norm of the logits; the products are the same."""
    with FakeTensorMode():
        model = attnorm.create_model("resnet50", norm="an", attention="released")
    assert count_macs(model) == EXPECTED["resnet50"]["an"]["macs"]


def test_counting_follows_the_image_size_and_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8)).train()
    assert count_macs(model, 32) == 16 * 16 * 8 * 3 * 9
    assert count_macs(model, 64) == 4 * count_macs(model, 32)
    assert model.training
    assert model[1].num_batches_tracked == 0
