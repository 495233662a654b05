"""Activations that cost no pass, because the normalizers before them apply them."""

from __future__ import annotations

from collections import Counter

from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from attnorm.models.sites import following_activation, set_submodule
from attnorm.norms import AttentiveNorm2d
from attnorm.norms.batch import BatchNorm2d, batch_training_step
from attnorm.norms.passes import ACTIVATIONS

_NAMES: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6"}


def fuse_activations(model: nn.Module) -> nn.Module:
    """Let batch norms and AttentiveNorm2d apply the ReLU or ReLU6 after them; returns the model.

    Only where that is certain to be called on their output alone. Parameters, their names and what
    is computed stay as they are, up to rounding; batch norms without an activation after them stay
    torch's, which are as fast.
    """
    modules = list(model.named_modules(remove_duplicate=False))
    uses = Counter(id(module) for _, module in modules)
    for name, module in modules:
        if uses[id(module)] > 1:
            continue
        if type(module) is BatchNormAct2d:
            if type(module.act) in _NAMES and type(module.drop) is nn.Identity:
                module.__class__ = FusedBatchNormAct2d
        elif _takes_activation(module):
            follower = following_activation(model, name, tuple(_NAMES))
            if follower is not None:
                if type(module) is nn.BatchNorm2d:
                    module.__class__ = BatchNorm2d
                module.activation = _NAMES[type(model.get_submodule(follower))]  # type: ignore[assignment]
                set_submodule(model, follower, nn.Identity())
    return model


def _takes_activation(module: nn.Module) -> bool:
    without = isinstance(module, AttentiveNorm2d) and module.activation is None
    return without or type(module) is nn.BatchNorm2d


class FusedBatchNormAct2d(BatchNormAct2d):  # type: ignore[misc]
    """timm's batch norm with an activation, like :class:`~attnorm.norms.batch.BatchNorm2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        activation = ACTIVATIONS[_NAMES[type(self.act)]]
        done = batch_training_step(self, x, activation) if self.training else None
        return super().forward(x) if done is None else done
