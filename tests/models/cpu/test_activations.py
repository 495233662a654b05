"""Activations within normalizers: the same network, with the same names, in fewer passes."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from attnorm import create_model
from attnorm.models.cpu.activations import FusedBatchNormAct2d, fuse_activations
from attnorm.norms import AttentiveNorm2d, native
from attnorm.norms.batch import BatchNorm2d

NETWORKS = {
    "resnet50": {"timm_options": {"channels": [8, 16, 24, 32]}},
    "densenet161": {"timm_options": {"growth_rate": 4}},
    "mobilenetv2": {"timm_model": "mobilenetv2_035"},
}
# Batch norms and AttentiveNorm2d with an activation in them, with either normalizer.
FUSED = {"resnet50": 33, "densenet161": 163, "mobilenetv2": 35}


def fused(model: nn.Module) -> list[nn.Module]:
    kinds = (BatchNorm2d, FusedBatchNormAct2d)
    return [
        module
        for module in model.modules()
        if isinstance(module, kinds) or (isinstance(module, AttentiveNorm2d) and module.activation)
    ]


@pytest.mark.parametrize("norm", ["bn", "an"])
@pytest.mark.parametrize("arch", NETWORKS)
def test_a_step_gives_the_same_in_float64_and_close_to_it_in_float32(arch: str, norm: str) -> None:
    torch.manual_seed(0)
    plain = create_model(arch, norm, num_classes=7, **NETWORKS[arch]).train()
    ours = fuse_activations(copy.deepcopy(plain))
    assert len(fused(ours)) == FUSED[arch]
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert not any(type(module) is BatchNormAct2d and _cuts(module) for module in ours.modules())
    x, results = torch.randn(4, 3, 32, 32), []
    in_float64 = copy.deepcopy(ours).double(), copy.deepcopy(plain).double()
    for model in (ours, *in_float64):
        model(x.to(next(model.parameters()).dtype)).square().mean().backward()
        gradients = torch.cat([p.grad.double().flatten() for p in model.parameters()])  # type: ignore[union-attr]
        running = torch.cat([b.double().flatten() for b in model.buffers()])
        results.append((gradients, running))
    for by_passes, in_order, exact in zip(*results, strict=True):
        # By torch's operations, since the passes know of no float64.
        torch.testing.assert_close(in_order, exact, rtol=1e-9, atol=1e-9)
        # A value within rounding of a kink falls on one side or the other, in torch's own as well.
        assert (by_passes - exact).norm() <= 0.2 * exact.norm()
    ours.eval()
    plain.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), plain.eval()(x), rtol=1e-4, atol=1e-4)


def _cuts(module: BatchNormAct2d) -> bool:
    return not isinstance(module.act, nn.Identity)


def test_what_is_called_twice_or_has_no_certain_activation_stays() -> None:
    shared = nn.BatchNorm2d(3)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.act = nn.BatchNorm2d(3), nn.ReLU()

    model = nn.ModuleDict(
        {
            "twice": nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU()),
            "own": Block(),
            "other": nn.Sequential(nn.BatchNorm2d(3), nn.GELU()),
            "dropping": BatchNormAct2d(3, drop_layer=nn.Dropout),
            "fused": nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()),
        }
    )
    before = {name: type(module) for name, module in model.named_modules()}
    fuse_activations(model)
    changed = {name for name, module in model.named_modules() if type(module) is not before[name]}
    assert changed == {"fused.0", "fused.1"}


def test_a_trained_network_is_an_ordinary_one_again() -> None:
    """What training writes can be read by a network that was never changed."""
    if native.load() is None:
        pytest.skip("no C compiler here")
    torch.manual_seed(0)
    plain = create_model("mobilenetv2", "an", num_classes=5, timm_model="mobilenetv2_035")
    ours = fuse_activations(copy.deepcopy(plain)).train()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    ours(torch.randn(4, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    plain.load_state_dict(ours.state_dict(), strict=True)
