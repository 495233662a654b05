"""Parameters of every row of Tables 2–4 and of its parts, to the last one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attnorm.config import (
    CascadeConfig,
    DetectorConfig,
    HTCConfig,
    NormConfig,
    load_arch,
    load_norm,
)
from attnorm.detection.backbone import build_backbone
from attnorm.detection.heads import BoxPredictor, MaskPredictor, build_box_head, build_mask_head
from attnorm.detection.model import build_detector, build_rpn

CLASSES = 80
PLAIN_RESNET101 = {"timm_model": "resnet101"}  # 2019's detectors do not have Table 1's deep stem


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def detector(**options: object) -> DetectorConfig:
    return DetectorConfig(name="mask_rcnn", **options)  # type: ignore[arg-type]


def network(arch: str, norm: NormConfig, config: DetectorConfig) -> int:
    overrides = PLAIN_RESNET101 if arch == "resnet101" else {}
    with torch.device("meta"):
        return parameters(build_detector(load_arch(arch, **overrides), norm, config, CLASSES))


GROUP_NORMS = {"box_head_norm": "gn", "mask_head_norm": "gn", "fpn_norm": "gn"}
AN_HEAD = {**GROUP_NORMS, "box_head_norm": "an"}

# The third column is what the paper's and mmdetection's codebases count, rounded, where they say.
MASK_RCNN = [
    ("resnet50", "bn", {"box_head": "2fc"}, 44_400_693),
    ("resnet101", "bn", {"box_head": "2fc"}, 63_392_821),
    ("resnet50", "bn", {"box_head": "4conv1fc"}, 45_711_413),  # 45.71 M published
    ("resnet101", "bn", {"box_head": "4conv1fc"}, 64_703_541),  # 64.70 M
    ("resnet50", "gn", {"box_head": "4conv1fc", **GROUP_NORMS}, 45_715_509),  # 45.72 M
    ("resnet101", "gn", {"box_head": "4conv1fc", **GROUP_NORMS}, 64_707_637),  # 64.71 M
    ("resnet50", "an", {"box_head": "4conv1fc"}, 45_909_551),  # 45.91 M
    ("resnet101", "an", {"box_head": "4conv1fc"}, 65_154_435),  # 65.15 M
    ("resnet50", "an", {"box_head": "4conv1fc", **AN_HEAD}, 45_957_739),  # 45.96 M
    ("resnet101", "an", {"box_head": "4conv1fc", **AN_HEAD}, 65_202_623),  # 65.20 M
    ("mobilenetv2", "bn", {"box_head": "2fc"}, 21_842_165),
    ("mobilenetv2", "bn", {"box_head": "4conv1fc"}, 23_152_885),
    ("mobilenetv2", "bn", {"box_head": "2fc", "last_map": "conv_head"}, 22_500_085),
    ("mobilenetv2", "bn", {"box_head": "4conv1fc", "last_map": "conv_head"}, 23_810_805),
]


@pytest.mark.parametrize(("arch", "norm", "options", "expected"), MASK_RCNN)
def test_mask_rcnn_has_as_many_as_its_row(
    arch: str, norm: str, options: dict[str, str], expected: int
) -> None:
    assert network(arch, load_norm(norm), detector(**options)) == expected


def test_the_releases_heads_in_the_backbone_have_batch_norms_of_k() -> None:
    released = load_norm("an", attention="released")
    plain = network("resnet50", load_norm("an"), detector(box_head="4conv1fc"))
    assert network("resnet50", released, detector(box_head="4conv1fc")) - plain == 250


@pytest.mark.parametrize(
    ("arch", "norm", "expected"),
    [
        ("resnet50", "bn", 77_325_377),
        ("resnet101", "bn", 96_317_505),  # 96.32 M published
        ("resnet101", "an", 96_768_399),  # 96.77 M
    ],
)
def test_cascade_mask_rcnn_has_as_many_as_its_row(arch: str, norm: str, expected: int) -> None:
    assert network(arch, load_norm(norm), CascadeConfig(name="cascade")) == expected


@pytest.mark.parametrize(
    ("norm", "semantic", "expected"),
    [("bn", True, 99_251_192), ("bn", False, 96_449_089), ("an", True, 99_702_086)],
)
def test_htc_has_as_many_as_its_row(norm: str, semantic: bool, expected: int) -> None:
    config = HTCConfig(name="htc", semantic_branch=semantic)
    assert network("resnet101", load_norm(norm), config) == expected


def test_the_parts_have_as_many_as_the_codebases_of_2019() -> None:
    with torch.device("meta"):
        backbones = {
            name: build_backbone(
                load_arch(arch, **overrides), load_norm("bn"), detector(fpn_norm=norm)
            )
            for name, arch, overrides, norm in (
                ("R50", "resnet50", {}, "none"),
                ("R101", "resnet101", PLAIN_RESNET101, "none"),
                ("R50 GN", "resnet50", {}, "gn"),
            )
        }
        heads = {
            (kind, norm): build_box_head(detector(box_head=kind, box_head_norm=norm))
            for kind, norm in (("2fc", "none"), ("4conv1fc", "none"), ("4conv1fc", "gn"))
        }
        masks = {norm: build_mask_head(detector(mask_head_norm=norm)) for norm in ("none", "gn")}
        rpn = build_rpn(detector())
        box, agnostic = (BoxPredictor(1024, CLASSES + 1, agnostic=a) for a in (False, True))
        mask = MaskPredictor(256, CLASSES + 1)
    assert parameters(backbones["R50"].body) == 23_508_032
    assert parameters(backbones["R101"].body) == 42_500_160
    assert parameters(backbones["R50"].fpn) == 3_344_384
    assert parameters(backbones["R50 GN"].fpn) == 3_346_432
    assert parameters(rpn) == 593_935
    assert parameters(heads["2fc", "none"]) == 13_895_680
    assert parameters(heads["4conv1fc", "none"]) == 15_206_400
    assert parameters(heads["4conv1fc", "gn"]) == 15_207_424
    assert parameters(box) == 415_125
    assert parameters(agnostic) == 1024 * 81 + 81 + 1024 * 4 + 4
    assert parameters(masks["none"]) == 2_360_320
    assert parameters(masks["gn"]) == 2_361_344
    assert parameters(mask) == 283_217


@pytest.mark.parametrize(
    ("components", "attention", "expected"),
    [
        ([10, 10, 20, 20], "sigmoid", 44_092),
        ([10, 10, 10, 10], "sigmoid", 28_712),
        ([10, 10, 20, 20], "released", 44_152),
    ],
)
def test_what_an_adds_to_the_group_norms_of_the_box_head(
    components: list[int], attention: str, expected: int
) -> None:
    with torch.device("meta"):
        grouped = build_box_head(detector(box_head="4conv1fc", box_head_norm="gn"))
        attentive = build_box_head(
            detector(
                box_head="4conv1fc",
                box_head_norm="an",
                head_components=components,
                head_attention=attention,
            )
        )
    assert parameters(attentive) - parameters(grouped) == expected
