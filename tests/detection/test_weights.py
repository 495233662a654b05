"""A classifier's weights as a detector's start: taken whole, or refused with what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants as hub
from torch import nn

from attnorm import config as schema
from attnorm.commands.export_safetensors import export
from attnorm.config import ArchConfig, NormConfig, load_norm
from attnorm.detection.backbone import Backbone, build_backbone
from attnorm.detection.weights import load_backbone
from attnorm.errors import UserError
from attnorm.models import build_model
from attnorm.training.checkpoint import save_checkpoint
from tests.conftest import SMALL_RESNET, compose_config, composed
from tests.detection.networks import detector, randomize, tiny

CLASSES = 7


def classifier(arch: ArchConfig, norm: NormConfig) -> nn.Module:
    torch.manual_seed(1)
    model = build_model(arch, norm, CLASSES)
    randomize(model)
    return model


def configured(*overrides: str) -> schema.Config:
    return composed(*SMALL_RESNET, "data=digits", *overrides)


def write_checkpoint(path: Path, *overrides: str) -> tuple[schema.Config, nn.Module]:
    """What a run leaves behind, without the run."""
    config = configured(*overrides)
    model = classifier(config.arch, config.norm)
    state = {
        "model": model.state_dict(),
        "config": schema.to_container(config),
        "epoch": 1,
        "step": 1,
        "class_names": [str(number) for number in range(CLASSES)],
    }
    save_checkpoint(state, path)
    return config, model


def backbone_of(config: schema.Config) -> Backbone:
    return build_backbone(config.arch, config.norm, detector())


def holds(backbone: Backbone, model: nn.Module) -> bool:
    theirs = model.state_dict()
    own = backbone.body.state_dict()
    return bool(own) and all(torch.equal(tensor, theirs[name]) for name, tensor in own.items())


@pytest.mark.parametrize("norm", ["bn", "an", "gn", "sn", "se"])
def test_a_checkpoint_of_this_project_loads(tmp_path: Path, norm: str) -> None:
    sites = [r"arch.squeeze_sites='layer\d\.\d+\.bn2'"] if norm == "se" else []
    config, model = write_checkpoint(tmp_path / "best.pt", f"norm={norm}", *sites)
    backbone = backbone_of(config)
    load_backbone(backbone, str(tmp_path / "best.pt"), config.arch, config.norm)
    assert holds(backbone, model)


def test_so_does_its_export(tmp_path: Path) -> None:
    config, model = write_checkpoint(tmp_path / "best.pt", "norm=an")
    path = tmp_path / "best.safetensors"
    export(tmp_path / "best.pt", path)
    backbone = backbone_of(config)
    load_backbone(backbone, str(path), config.arch, config.norm)
    assert holds(backbone, model)
    with pytest.raises(UserError, match=r"was trained with norm=an, this run has norm=gn"):
        load_backbone(backbone, str(path), config.arch, load_norm("gn"))


@pytest.mark.parametrize("name", ["w.pth", "wrapped.pth", "w.safetensors"])
def test_files_of_tensors_load_by_timms_names(tmp_path: Path, name: str) -> None:
    arch, norm, path = tiny(), load_norm("bn"), tmp_path / name
    model = classifier(arch, norm)
    weights = model.state_dict()
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    elif name == "wrapped.pth":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, path)
    else:
        torch.save({k: v for k, v in weights.items() if "num_batches" not in k}, path)
    backbone = build_backbone(arch, norm, detector())
    load_backbone(backbone, str(path), arch, norm)
    assert holds(backbone, model)


@pytest.mark.parametrize(
    ("timm_model", "last_map"),
    [("densenet121", "blocks"), ("mobilenetv2_035", "blocks"), ("mobilenetv2_035", "conv_head")],
)
def test_so_do_those_of_networks_that_are_cut(
    tmp_path: Path, timm_model: str, last_map: str
) -> None:
    arch, norm = tiny(timm_model=timm_model, attentive_sites=None), load_norm("bn")
    model = classifier(arch, norm)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    backbone = build_backbone(arch, norm, detector(last_map=last_map))
    load_backbone(backbone, str(tmp_path / "w.pth"), arch, norm)
    assert holds(backbone, model)


def refusal(backbone: Backbone, path: Path, arch: ArchConfig, norm: NormConfig) -> str:
    before = {name: tensor.clone() for name, tensor in backbone.body.state_dict().items()}
    with pytest.raises(UserError) as refused:
        load_backbone(backbone, str(path), arch, norm)
    after = backbone.body.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    message = str(refused.value)
    assert len(message.splitlines()) <= 3
    return message


@pytest.mark.parametrize(
    ("theirs", "own", "there", "here"),
    [
        ("norm=bn", "norm=an", "norm=bn", "norm=an"),
        (
            "arch.timm_model=resnet14t",
            "norm=bn",
            "arch.timm_model=resnet14t",
            "arch.timm_model=resnet10t",
        ),
        (
            "norm=an norm.attention=released",
            "norm=an",
            "norm.attention=released",
            "norm.attention=sigmoid",
        ),
        ("norm=sn", "norm=sn norm.using_bn=false", "norm.using_bn=True", "norm.using_bn=False"),
        ("norm=an norm.backbone=in", "norm=an norm.backbone=ln", "backbone=in", "backbone=ln"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_by_its_config(
    tmp_path: Path, theirs: str, own: str, there: str, here: str
) -> None:
    write_checkpoint(tmp_path / "best.pt", *theirs.split())
    config = configured(*own.split())
    message = refusal(backbone_of(config), tmp_path / "best.pt", config.arch, config.norm)
    assert message.startswith(f"weights={tmp_path / 'best.pt'} was trained with ")
    trained, run = message.split(", this run has ")
    assert there in trained
    assert here in run


def test_a_detectors_checkpoint_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "best.pt", "norm=bn")
    state = torch.load(tmp_path / "best.pt", weights_only=True)
    state["config"]["detector"] = schema.to_container(
        compose_config("task=detection", "detector=mask_rcnn", "data=digit_scenes")
    )["detector"]
    save_checkpoint(state, tmp_path / "best.pt")
    config = configured("norm=bn")
    message = refusal(backbone_of(config), tmp_path / "best.pt", config.arch, config.norm)
    assert "is the checkpoint of a detector" in message
    assert "give a classifier's" in message


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("lacks", "lacks 1 tensors, such as layer2.0.conv1.weight."),
        ("adds", "also has 1 tensors, such as layer9.weight."),
        ("misshapes", "has in another shape 1 tensors, such as layer2.0.bn1.weight."),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: str, what: str) -> None:
    arch, norm, path = tiny(), load_norm("bn"), tmp_path / "w.pth"
    weights = classifier(arch, norm).state_dict()
    if change == "lacks":
        del weights["layer2.0.conv1.weight"]
    elif change == "adds":
        weights["layer9.weight"] = torch.zeros(3)
    else:
        weights["layer2.0.bn1.weight"] = torch.zeros(3)
    torch.save(weights, path)
    message = refusal(build_backbone(arch, norm, detector()), path, arch, norm)
    assert message.startswith(f"weights={path} is of another network than arch=resnet10t")
    assert message.endswith(what)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    arch, norm = tiny(), load_norm("bn")
    backbone = build_backbone(arch, norm, detector())
    message = refusal(backbone, tmp_path / "none.pt", arch, norm)
    assert message.startswith(f"weights={tmp_path / 'none.pt'}: there is no such file.")
    torch.save({"conv1.0.weight": torch.zeros(1)}, tmp_path / "plain.pt")
    message = refusal(backbone, tmp_path / "plain.pt", arch, norm)
    assert "was not written by attnorm's trainer" in message
    for suffix in (".pth", ".safetensors", ".pt"):
        (tmp_path / f"noise{suffix}").write_bytes(b"noise" * 20)
        message = refusal(backbone, tmp_path / f"noise{suffix}", arch, norm)
        assert f"noise{suffix} cannot be read" in message


def test_timms_batch_norms_are_not_for_another_normalizer() -> None:
    arch, norm = tiny(), load_norm("an")
    message = refusal(build_backbone(arch, norm, detector()), Path("timm"), arch, norm)
    assert message.startswith("weights=timm has batch norms, but norm=an: give weights=")


def test_without_a_network_the_hub_fails_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)  # what the variables of these names set
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    arch, norm = tiny(), load_norm("bn")
    message = refusal(build_backbone(arch, norm, detector()), Path("timm"), arch, norm)
    assert message.startswith("weights=timm: weights of resnet10t could not be had from timm")
    assert "Give weights= the path of a .pt" in message
