"""A run's best weights as safetensors: the same numbers, the config as metadata, usable again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from attnorm import config as schema
from attnorm.models.build import build_model
from attnorm.training.checkpoint import save_checkpoint
from tests.conftest import compose_config
from tests.script import run_script


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = compose_config("arch=mobilenetv2", "norm=an", "norm.num_components=3")
    model = build_model(config.arch, config.norm, 10).to(memory_format=torch.channels_last)
    nn.init.normal_(model.classifier.weight)
    state = {
        "model": model.state_dict(),
        "config": schema.to_container(config),
        "class_names": [str(digit) for digit in range(10)],
        "epoch": 4,
        "step": 100,
    }
    save_checkpoint(state, folder / "best.pt")
    return folder


def test_a_run_is_exported_with_its_config_and_loads_again(run_dir: Path) -> None:
    done = run_script("export_safetensors", str(run_dir))
    assert done.returncode == 0, done.stderr
    target = run_dir / "best.safetensors"
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
        names = set(file.keys())
    config = schema.from_container(json.loads(metadata["config"]))
    assert config.norm.layer_options()["num_components"] == 3
    assert json.loads(metadata["class_names"]) == [str(digit) for digit in range(10)]
    assert metadata["epoch"] == "4"

    stored = torch.load(run_dir / "best.pt", weights_only=True)["model"]
    config.arch.pretrained = str(target)
    model = build_model(config.arch, config.norm, 10)
    assert names == set(stored)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())

    again = run_script("export_safetensors", str(run_dir))
    assert again.returncode == 2
    assert "exists: choose another name" in again.stderr


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    done = run_script("export_safetensors", str(tmp_path))
    assert done.returncode == 2
    assert "best.pt does not exist" in done.stderr
    assert "Traceback" not in done.stderr
