"""Released checkpoints become ours: every tensor, its numbers, and what the network computes.

The sources are synthetic, written here in the released layout.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet50

import attnorm
from attnorm import config as schema
from attnorm.models.authors_release import check_same, load_released
from attnorm.models.build import build_model
from attnorm.training.checkpoint import load_checkpoint, load_weights
from tests.script import run_script


class ReleasedNorm(nn.BatchNorm2d):
    """The released layer, from its description: names of its tensors, and what it computes."""

    def __init__(self, channels: int, components: int) -> None:
        super().__init__(channels, affine=False)
        self.weight_ = nn.Parameter(torch.randn(components, channels))
        self.bias_ = nn.Parameter(torch.randn(components, channels))
        self.attention_weights = nn.Module()
        self.attention_weights.attention = nn.Sequential(
            nn.Conv2d(channels, components, 1, bias=False), nn.BatchNorm2d(components)
        )

    def forward(self, x: Tensor) -> Tensor:
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=True)
        logits = self.attention_weights.attention(mean * torch.rsqrt(var + 1e-3))
        mixture = nn.functional.relu6(logits + 3).flatten(1) / 6
        scale, offset = mixture @ self.weight_, mixture @ self.bias_
        return super().forward(x) * scale[:, :, None, None] + offset[:, :, None, None]


def released_resnet50() -> nn.Module:
    model = resnet50()
    for stage, components in ((1, 10), (2, 10), (3, 20), (4, 20)):
        for block in getattr(model, f"layer{stage}"):
            block.bn2 = ReleasedNorm(block.bn2.num_features, components)
    return model


def released_mobilenet() -> nn.Module:
    model = mobilenet_v2()
    blocks = [1, 2, 3, 4, 3, 3, 1]
    counts = [5, 5, 5, 5, 10, 10, 10]
    per_block = [k for k, number in zip(counts, blocks, strict=True) for _ in range(number)]
    for index, components in enumerate(per_block, start=1):
        depthwise = model.features[index].conv[0 if index == 1 else 1]
        depthwise[1] = ReleasedNorm(depthwise[1].num_features, components)
    return model


def save_released(model: nn.Module, path: Path) -> None:
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif name.endswith("running_mean"):
            nn.init.normal_(tensor, std=0.1)
    first = next(model.parameters())
    first.data = first.data.half().float()
    state = {f"module.network.{name}": tensor for name, tensor in model.state_dict().items()}
    name = next(iter(state))
    state[name] = state[name].half()  # mixed-precision training may leave tensors in half
    torch.save(
        {
            "epoch": 120,
            "arch": "any",
            "state_dict": state,
            "best_prec1": torch.tensor(78.4),
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        },
        path,
    )


@pytest.mark.parametrize(
    ("arch", "create"), [("resnet50", released_resnet50), ("mobilenetv2", released_mobilenet)]
)
def test_a_released_checkpoint_computes_the_same_after_conversion(
    arch: str, create: Callable[[], nn.Module], tmp_path: Path
) -> None:
    released = create().eval()
    source, target = tmp_path / "released.pth.tar", tmp_path / "ours.pt"
    save_released(released, source)
    done = run_script("convert_checkpoint", str(source), str(target), "--arch", arch)
    assert done.returncode == 0, done.stderr
    assert f"{len(released.state_dict())} tensors, each equal to its source" in done.stdout

    state = load_checkpoint(target)
    config = schema.from_container(state["config"])
    assert config.norm.layer_options()["attention"] == "released"
    assert config.data.name == "imagenet"
    model = build_model(config.arch, config.norm, len(state["class_names"])).eval()
    load_weights(model, state["model"], target)
    assert all(t.dtype in (torch.float32, torch.int64) for t in model.state_dict().values())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model.double()(x), released.double()(x), rtol=1e-8, atol=1e-8)
    assert state["class_names"][0] == "n01440764"
    assert state["class_names"] == sorted(state["class_names"])


def test_a_checkpoint_of_another_architecture_is_refused_and_nothing_written(
    tmp_path: Path,
) -> None:
    source, target = tmp_path / "whole.pth", tmp_path / "ours.pt"
    save_released(released_mobilenet(), source)
    done = run_script("convert_checkpoint", str(source), str(target), "--arch", "resnet50")
    assert done.returncode == 2
    assert "does not fit arch=resnet50" in done.stderr
    assert "Traceback" not in done.stderr
    assert not target.exists()


def test_lacking_foreign_and_misshapen_tensors_are_named() -> None:
    model = attnorm.create_model("mobilenetv2", norm="an", attention="released")
    whole = released_mobilenet().state_dict()
    norm = "features.3.conv.1.1"
    lacking = {name: t for name, t in whole.items() if name != f"{norm}.weight_"}
    foreign = {**whole, f"{norm}.gamma": whole[f"{norm}.weight_"]}
    misshapen = {**whole, f"{norm}.bias_": torch.zeros(7, 144)}
    for state, message in (
        (lacking, r"lacks blocks\.1\.1\.bn2\.norm\.weight"),
        (foreign, r"unknown to it: blocks\.1\.1\.bn2\.norm\.gamma"),
        (misshapen, r"other shapes in blocks\.1\.1\.bn2\.norm\.bias"),
    ):
        with pytest.raises(attnorm.UserError, match=message):
            load_released(model, state, "mobilenetv2")


def test_the_back_check_notices_one_changed_number() -> None:
    weights = {"module.network.fc.weight": torch.randn(3, 3)}
    same = {"fc.weight": weights["module.network.fc.weight"].clone()}
    check_same(weights, same, "resnet50")
    same["fc.weight"][1, 1] += 1e-6
    with pytest.raises(RuntimeError, match=r"fc\.weight did not survive"):
        check_same(weights, same, "resnet50")
