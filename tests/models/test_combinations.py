"""Every architecture with every normalizer: builds, takes a training step, evaluates."""

import pytest
import torch

import attnorm
from attnorm.config import SGDConfig
from attnorm.training.optim import build_optimizer
from tests.models.conftest import COMBINATIONS

# AN and BN everywhere, and every normalizer in a residual and an inverted network.
PLAIN = ("resnet50", "mobilenetv2")
FAST = [
    pytest.param(
        arch, norm, marks=() if norm in ("bn", "an") or arch in PLAIN else pytest.mark.slow
    )
    for arch, norm in COMBINATIONS
]


@pytest.mark.parametrize(("arch", "norm"), FAST)
def test_it_builds_trains_a_step_and_evaluates(arch: str, norm: str) -> None:
    torch.manual_seed(0)
    model = attnorm.create_model(arch, norm=norm, num_classes=10)
    images, labels = torch.randn(3, 3, 64, 64), torch.tensor([1, 5, 9])
    images = images.to(memory_format=torch.channels_last)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, SGDConfig(lr=0.01))
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    optimizer.step()

    model.eval()
    with torch.no_grad():
        logits = model(images)
        alone = model(images[1:2])
    assert logits.shape == (3, 10)
    assert logits.isfinite().all()
    torch.testing.assert_close(alone, logits[1:2], rtol=1e-3, atol=1e-4)
