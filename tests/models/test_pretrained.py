"""Weights from files and from the hub: loaded whole, or refused with what does not fit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

import attnorm
from attnorm.config import load_arch, load_norm
from attnorm.models.build import build_model

TINY = {"timm_model": "resnet10t", "attentive_sites": r"layer(\d)\.\d+\.bn1"}


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """A timm model whose every tensor differs from a new one's."""
    torch.manual_seed(1)
    model = timm.create_model("resnet10t", num_classes=7)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


def write(model: nn.Module, path: Path) -> str:
    weights = model.state_dict()
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    elif path.stem == "wrapped":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, path)
    else:
        torch.save(weights, path)
    return str(path)


@pytest.mark.parametrize("name", ["plain.pth", "wrapped.pth", "weights.safetensors"])
def test_timm_weights_load_into_a_bn_model(theirs: nn.Module, tmp_path: Path, name: str) -> None:
    path = write(theirs, tmp_path / name)
    model = attnorm.create_model("timm", norm="bn", num_classes=7, pretrained=path, **TINY).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), theirs(x))


def test_they_load_into_an_an_model_but_for_the_mixtures(theirs: nn.Module, tmp_path: Path) -> None:
    path = write(theirs, tmp_path / "w.safetensors")
    model = attnorm.create_model("timm", norm="an", num_classes=7, pretrained=path, **TINY)
    after, before = model.state_dict(), theirs.state_dict()
    assert before.keys() <= after.keys()
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    mixtures = {f"layer{s}.0.bn1.{leaf}" for s in range(1, 5) for leaf in ("weight", "bias")}
    assert changed == mixtures


def test_trained_scales_are_not_set_back_to_the_zero_of_a_new_model(
    theirs: nn.Module, tmp_path: Path
) -> None:
    options = {**TINY, "norm": "gn", "num_classes": 7, "residual_sites": r"layer\d\.\d\.bn2"}
    path = write(theirs, tmp_path / "w.pth")
    model = attnorm.create_model("timm", pretrained=path, **options)
    assert torch.equal(model.layer1[0].bn2.weight, theirs.layer1[0].bn2.weight)
    assert (attnorm.create_model("timm", **options).layer1[0].bn2.weight == 0).all()


def test_another_number_of_classes_keeps_all_but_the_classifier(
    theirs: nn.Module, tmp_path: Path
) -> None:
    path = write(theirs, tmp_path / "w.pth")
    model = attnorm.create_model("timm", norm="bn", num_classes=3, pretrained=path, **TINY)
    assert model.fc.weight.shape[0] == 3
    assert torch.equal(model.layer4[0].conv1.weight, theirs.layer4[0].conv1.weight)


def test_weights_of_an_an_model_load_into_an_an_model(tmp_path: Path) -> None:
    source = attnorm.create_model("timm", norm="an", num_classes=7, **TINY).eval()
    path = write(source, tmp_path / "an.pth")
    model = attnorm.create_model("timm", norm="an", num_classes=7, pretrained=path, **TINY).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), source(x))


def test_a_checkpoint_to_be_resumed_does_not_need_the_pretrained_file() -> None:
    arch = load_arch("timm", pretrained="/gone/weights.pth", **TINY)
    build_model(arch, load_norm("bn"), 7, load_pretrained=False)
    with pytest.raises(attnorm.UserError, match="there is no such file"):
        build_model(arch, load_norm("bn"), 7)


def test_files_that_do_not_fit_are_refused_and_say_why(theirs: nn.Module, tmp_path: Path) -> None:
    write(timm.create_model("resnet14t"), tmp_path / "other.pth")
    weights = theirs.state_dict()
    weights["conv1.0.weight"] = torch.zeros(2)
    torch.save(weights, tmp_path / "shape.pth")
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    (tmp_path / "broken.safetensors").write_bytes(b"not a checkpoint")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in (
        ("other.pth", "is of another model: it lacks|is of another model: it also has"),
        ("shape.pth", "it misshapes 1 tensors, such as conv1.0.weight"),
        ("broken.pth", "cannot be read as a weights file"),
        ("broken.safetensors", "cannot be read as a weights file"),
        ("list.pth", "does not hold a dictionary of named tensors"),
    ):
        with pytest.raises(attnorm.UserError, match=message):
            attnorm.create_model(
                "timm", norm="bn", num_classes=7, pretrained=str(tmp_path / name), **TINY
            )
    with pytest.raises(attnorm.UserError, match=r"arch\.pretrained=3 is not possible"):
        attnorm.create_model("resnet50", pretrained=3)


def test_without_a_network_the_hub_fails_with_one_message(tmp_path: Path) -> None:
    program = (
        "import attnorm\n"
        "try: attnorm.create_model('resnet50', pretrained=True)\n"
        "except attnorm.UserError as error: print('refused:', error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert "refused: arch.pretrained=true: they could not be downloaded" in done.stdout
    assert "Give arch.pretrained the path" in done.stdout
