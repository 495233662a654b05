"""Weight-decay groups of every combination: nothing lost, nothing twice, all where they belong."""

import pytest
from torch import nn

from attnorm.norms import AttentiveNorm2d
from attnorm.training.optim import parameter_groups
from tests.models.conftest import ARCHITECTURES, COMBINATIONS, structure


def names_by_group(model: nn.Module) -> dict[str, list[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, weight_decay=1e-4, norm_weight_decay=False)
    return {str(g["name"]): [names[id(p)] for p in g["params"]] for g in groups}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("arch", "norm"), COMBINATIONS)
def test_each_parameter_is_in_the_group_of_its_kind_once(arch: str, norm: str) -> None:
    model = structure(arch, norm)
    kernels = [
        f"{name}.{leaf}"
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        for leaf, _ in module.named_parameters(recurse=False)
    ]
    others = [name for name, _ in model.named_parameters() if name not in set(kernels)]
    groups = names_by_group(model)
    assert sorted(groups["weights"]) == sorted(kernels)
    assert sorted(groups["norm"]) == sorted(others)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_mixtures_are_norm_parameters_and_heads_are_weights(arch: str) -> None:
    model = structure(arch, "an")
    groups = {name: group for group, names in names_by_group(model).items() for name in names}
    layers = [n for n, m in model.named_modules() if isinstance(m, AttentiveNorm2d)]
    assert layers
    for name in layers:
        assert groups[f"{name}.weight"] == groups[f"{name}.bias"] == "norm"
        assert groups[f"{name}.attention.weight"] == groups[f"{name}.attention.bias"] == "weights"
