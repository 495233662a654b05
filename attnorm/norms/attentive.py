"""Attentive Normalization: a normalizer whose affine transformation is a mixture per instance."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from attnorm.errors import UserError
from attnorm.norms import native
from attnorm.norms.base import Normalization
from attnorm.norms.fused import attentive_batch_norm
from attnorm.norms.group import largest_group_count
from attnorm.norms.heads import HEADS, LogitNorm, SigmoidHead, batch_normalized
from attnorm.norms.passes import ACTIVATIONS, activated_
from attnorm.norms.reference import attentive_affine
from attnorm.norms.switchable import SwitchNorm2d
from attnorm.norms.training_step import training_step

BACKBONES = ("bn", "gn", "in", "ln", "sn")


class AttentiveNorm2d(Normalization):
    """Normalize, then apply an instance-specific mixture of K affine transformations.

    x̂ is normalized by ``backbone``; λ = attention(x) weighs K scales γ and offsets β for each
    instance; y = Σ_k λ_k (γ_k x̂ + β_k) (paper, §3.3, equations 6 and 7). Input and output are
    (N, C, H, W); the output keeps dtype and memory format. Statistics, attention and reductions
    are float32 (float64 for float64 input), under autocast too.

    With ``backbone="bn"`` and ``attention="sigmoid"`` all this is one operator that passes over
    memory as often as batch normalization and keeps nothing but x for backward. Other backbones
    and heads, TorchScript and ONNX export and second derivatives run Figure 3's own operations,
    which give the same values and cost several times as much memory traffic.

    Args:
        num_features: C.
        num_components: K, the number of affine transformations in the mixture.
        backbone: bn, gn, in, ln, or sn (§1.2: "applicable to existing variants").
        attention: sigmoid (Figure 3: global average, linear, sigmoid), conv_relu (§3.3: 1x1
            convolution, ReLU, global average, sigmoid) or released (the authors' later release).
        eps: Added to the variance.
        momentum: Weight of the newest batch in the running statistics.
        separate_attention: Mixture coefficients of their own for the offsets (§1.2).
        initial_scale: Where the mixture's scale starts, about; None for the paper's start (γ near
            1), which is K / 2 since every λ_k starts near 1/2. Before a ReLU6, which cuts at 6, so
            large a scale makes gradients grow from layer to layer.
        num_groups: For backbone gn: the largest divisor of C up to this is used.
        activation: ``"relu"`` cuts the result below 0 within the same operator, ``"relu6"`` above
            6 as well.
        track_running_stats: Keep running statistics for evaluation (backbone bn); without them
            evaluation too uses those of the batch.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        UserError: an unknown backbone, attention or activation, or a count below 1.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        num_components: int = 10,
        backbone: str = "bn",
        attention: str = "sigmoid",
        eps: float = 1e-5,
        momentum: float = 0.1,
        *,
        separate_attention: bool = False,
        initial_scale: float | None = None,
        num_groups: int = 32,
        activation: Literal["relu", "relu6"] | None = None,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _require(backbone in BACKBONES, "backbone", backbone, "one of " + ", ".join(BACKBONES))
        _require(attention in HEADS, "attention", attention, "one of " + ", ".join(HEADS))
        _require(activation in ACTIVATIONS, "activation", activation, "relu, relu6 or None")
        for name, count in (("num_components", num_components), ("num_groups", num_groups)):
            _require(count >= 1, name, count, "at least 1")
        valid = initial_scale is None or initial_scale > 0
        _require(valid, "initial_scale", initial_scale, "positive or None")
        self.initial_scale = initial_scale
        self.num_features, self.num_components = num_features, num_components
        self.backbone, self.attention_name, self.activation = backbone, attention, activation
        self.eps, self.momentum, self.group_name = eps, momentum, ""
        self.separate_attention = separate_attention
        self.num_groups = largest_group_count(num_features, num_groups)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(num_components, num_features, **options))
        self.bias = nn.Parameter(torch.empty(num_components, num_features, **options))
        outputs = num_components * (2 if separate_attention else 1)
        self.attention = HEADS[attention](num_features, outputs, **options)
        if backbone == "sn":
            self.switch = SwitchNorm2d(num_features, eps, momentum, affine=False).to(**options)
        tracked = track_running_stats and backbone == "bn"
        mean, var = torch.zeros(num_features, **options), torch.ones(num_features, **options)
        self.register_buffer("running_mean", mean if tracked else None)
        self.register_buffer("running_var", var if tracked else None)
        batches = torch.tensor(0, device=device)
        self.register_buffer("num_batches_tracked", batches if tracked else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """γ = 1 + 0.1 N(0, 1), β = 0.1 N(0, 1) (paper, §4), for ``initial_scale`` times 2 / K."""
        wanted = self.initial_scale
        scale = 1.0 if wanted is None else 2 * wanted / self.num_components
        nn.init.normal_(self.weight, scale, 0.1 * scale)
        nn.init.normal_(self.bias, 0.0, 0.1 * scale)

    def synchronize(self, group: dist.ProcessGroup | None = None) -> Self:
        """Share the statistics of a training batch between the processes of ``group``.

        The default is all processes. Statistics of instances (and the attention's average) stay
        where they are. Forward and backward exchange 2 C + 1 numbers each; batch sizes may differ
        between processes. Backbones gn, in and ln have nothing to share; sn keeps its own.

        Raises:
            RuntimeError: there is no process group yet.
        """
        group = group if group is not None else dist.group.WORLD
        if group is None:
            raise RuntimeError("synchronize() needs torch.distributed.init_process_group() first")
        # The name, not the group: modules are copied and saved.
        self.group_name = group.group_name if dist.get_world_size(group) > 1 else ""
        for module in self.attention.modules():
            if isinstance(module, LogitNorm):
                module.group_name = self.group_name
        return self

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError(f"expected 4D input (got {x.dim()}D input)")
        if self.backbone == "bn" and self._uses_batch_statistics() and not self.group_name:
            _check_several_values(x)
        if self.backbone == "bn" and self.attention_name == "sigmoid" and not _exporting():
            return self._fused_forward(x)
        self._count_batch()
        with torch.autocast(x.device.type, enabled=False):
            y = self._reference_forward(x)
        return activated_(y, ACTIVATIONS[self.activation])

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, num_components={self.num_components}, "
            f"backbone={self.backbone}, attention={self.attention_name}, "
            f"separate_attention={self.separate_attention}, eps={self.eps}, "
            f"momentum={self.momentum}, activation={self.activation}"
        )

    def _counter(self) -> Tensor | None:
        """Of the batches, if this one counts."""
        return self.num_batches_tracked if self.training else None

    def _count_batch(self) -> None:
        counter = self._counter()
        if counter is not None:
            counter.add_(1)

    def _uses_batch_statistics(self) -> bool:
        return self.training or self.running_mean is None

    def _fused_forward(self, x: Tensor) -> Tensor:
        # Each once: a module looks for its tensors in Python, and small layers are short.
        attention, mean, var = self.attention, self.running_mean, self.running_var
        assert isinstance(attention, SigmoidHead)
        of_batch = self.training or mean is None
        parameters = (self.weight, self.bias, attention.weight, attention.bias)
        moved = None
        if self.training and mean is not None and var is not None:
            moved = mean, var
        if of_batch and not self.group_name:
            options = native.StepOptions(
                moved, self._counter(), self.momentum, self.eps, ACTIVATIONS[self.activation]
            )
            done = training_step(x, parameters, options)
            if done is not None:
                return done
        self._count_batch()
        y, *newest = attentive_batch_norm(
            x,
            *parameters,
            None if of_batch else mean,
            None if of_batch else var,
            eps=self.eps,
            activation=ACTIVATIONS[self.activation],
            group_name=self.group_name if self.training else "",
        )
        if moved is not None:
            for running, found in zip(moved, newest, strict=True):
                running.lerp_(found.to(running.dtype), self.momentum)
        return y

    def _reference_forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        weight, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        return attentive_affine(self._normalized(wide), self.attention(wide), weight, bias).to(
            x.dtype
        )

    def _normalized(self, x: Tensor) -> Tensor:
        if self.backbone == "sn":
            normalized: Tensor = self.switch(x)
            return normalized
        groups = {"gn": self.num_groups, "ln": 1, "in": self.num_features}.get(self.backbone)
        if groups is not None:
            return functional.group_norm(x, groups, eps=self.eps)
        return batch_normalized(
            x,
            self.running_mean,
            self.running_var,
            self._uses_batch_statistics(),
            self.momentum,
            self.eps,
            self.group_name if self.training else "",
        )


def _require(condition: bool, key: str, value: object, wanted: str) -> None:
    if not condition:
        raise UserError(f"AttentiveNorm2d: {key}={value} is not possible: it must be {wanted}.")


def _check_several_values(x: Tensor) -> None:
    if x.numel() == x.shape[1]:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.size()}"
        )


def _exporting() -> bool:
    """Formats that hold standard operators only."""
    if torch.jit.is_tracing():  # type: ignore[no-untyped-call, attr-defined]
        return True
    # The second costs an import statement, which is long for a small layer.
    return torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export()
