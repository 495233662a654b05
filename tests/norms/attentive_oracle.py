"""Attentive Normalization transcribed from the paper's equations, slowly and in float64."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def normalized(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """Equations 1 and 3 with the support set that runs over ``axes``."""
    mean = x.mean(axes, keepdim=True)
    deviation = ((x - mean) ** 2).mean(axes, keepdim=True).add(eps).sqrt()
    return (x - mean) / deviation


def by_groups(x: Tensor, groups: int, eps: float) -> Tensor:
    """Equations 1 and 3 with support sets of C / groups channels of one instance."""
    parts = x.reshape(x.shape[0], groups, -1)
    return normalized(parts, (2,), eps).reshape(x.shape)


def switched(x: Tensor, eps: float, mean_weight: Tensor, var_weight: Tensor) -> Tensor:
    """SN's x̂: softmax-mixed statistics of IN (unbiased), LN and BN."""
    h, w = x.shape[2:]
    mean_in = x.mean((2, 3), keepdim=True)
    var_in = x.var((2, 3), keepdim=True, correction=1 if h * w > 1 else 0)
    second_moment = var_in + mean_in**2
    mean_ln = mean_in.mean(1, keepdim=True)
    var_ln = second_moment.mean(1, keepdim=True) - mean_ln**2
    mean_bn = mean_in.mean(0, keepdim=True)
    var_bn = second_moment.mean(0, keepdim=True) - mean_bn**2
    a, b = mean_weight.softmax(0), var_weight.softmax(0)
    mean = a[0] * mean_in + a[1] * mean_ln + a[2] * mean_bn
    var = b[0] * var_in + b[1] * var_ln + b[2] * var_bn
    return (x - mean) / (var + eps).sqrt()


def mixture_sigmoid(x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Equation 6 as Figure 3 has it."""
    pooled = x.mean((2, 3))
    return 1 / (1 + torch.exp(-(pooled @ state["attention.weight"].T + state["attention.bias"])))


def mixture_conv_relu(x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Equation 6 with §3.3's alternative."""
    weight = state["attention.weight"][:, :, 0, 0]
    features = torch.einsum("nchw,kc->nkhw", x, weight)
    features = (features + state["attention.bias"][:, None, None]).clamp(min=0)
    return 1 / (1 + torch.exp(-features.mean((2, 3))))


def mixture_released(x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Equation 6 with the head of the later release, in training."""
    pooled, var = x.mean((2, 3)), x.var((2, 3), correction=1)
    logits = (pooled / (var + 1e-3).sqrt()) @ state["attention.linear.weight"].T
    logits = normalized(logits, (0,), 1e-5)
    logits = logits * state["attention.norm.weight"] + state["attention.norm.bias"]
    return ((logits + 3).clamp(0, 6)) / 6


MIXTURES = {
    "sigmoid": mixture_sigmoid,
    "conv_relu": mixture_conv_relu,
    "released": mixture_released,
}


def recalibrated(xhat: Tensor, mixture: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Equation 7, term by term."""
    k = weight.shape[0]
    result = torch.zeros_like(xhat)
    for component in range(k):
        for_scale = mixture[:, component, None, None, None]
        for_offset = mixture[:, mixture.shape[1] - k + component, None, None, None]
        scaled = weight[component][:, None, None] * xhat
        result = result + for_scale * scaled + for_offset * bias[component][:, None, None]
    return result


def attentive(
    x: Tensor, state: Mapping[str, Tensor], backbone: str, attention: str, groups: int
) -> Tensor:
    """A layer in training, from its ``state_dict``."""
    eps = 1e-5
    if backbone == "bn":
        xhat = normalized(x, (0, 2, 3), eps)
    elif backbone == "sn":
        xhat = switched(x, eps, state["switch.mean_weight"], state["switch.var_weight"])
    else:
        xhat = by_groups(x, {"gn": groups, "ln": 1, "in": x.shape[1]}[backbone], eps)
    mixture = MIXTURES[attention](x, state)
    return recalibrated(xhat, mixture, state["weight"], state["bias"])


class Figure3(nn.BatchNorm2d):
    """The paper's Figure 3, for whole networks and timings."""

    def __init__(self, num_features: int, num_components: int) -> None:
        super().__init__(num_features, affine=False)
        self.gamma = nn.Parameter(torch.empty(num_components, num_features))
        self.beta = nn.Parameter(torch.empty(num_components, num_features))
        self.fc = nn.Linear(num_features, num_components)

    def forward(self, x: Tensor) -> Tensor:
        xhat = super().forward(x)
        mixture = torch.sigmoid(self.fc(x.mean((2, 3))))
        gamma, beta = mixture @ self.gamma, mixture @ self.beta
        return gamma[:, :, None, None] * xhat + beta[:, :, None, None]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-30))
