"""Response statistics against NumPy and SciPy, on a real model and on numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import nn

import attnorm
from attnorm.errors import UserError
from attnorm.reporting.responses.spread import (
    Spread,
    choose_units,
    collect_responses,
    distances,
    sample_images,
    spread,
    spread_table,
)
from attnorm.run.trained import Trained, load_trained
from tests.reporting.models import write_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    path = write_checkpoint(tmp_path_factory.mktemp("an"), "an")
    return load_trained(path, ["loader=torch", "data.workers=0"])


def test_units_are_named_as_in_the_paper() -> None:
    units = choose_units(attnorm.create_model("resnet50", norm="bn"))
    assert [(unit.name, unit.label) for unit in units] == [
        ("layer1.2", "stage-1-unit-3"),
        ("layer2.3", "stage-2-unit-4"),
        ("layer3.5", "stage-3-unit-6"),
        ("layer4.2", "stage-4-unit-3"),
    ]
    dense = choose_units(attnorm.create_model("densenet161", norm="bn"))
    assert dense[0].label == "stage-1-unit-6"
    assert len(choose_units(attnorm.create_model("mobilenetv2", norm="an"))) == 7


def test_any_modules_can_be_chosen_and_wrong_patterns_are_refused() -> None:
    model = attnorm.create_model("resnet50", norm="bn")
    units = choose_units(model, r"layer4\.[01]|conv1")
    assert {unit.label for unit in units} == {"conv1", "stage-4-unit-1", "stage-4-unit-2"}
    with pytest.raises(UserError, match="sites=nowhere"):
        choose_units(model, "nowhere")
    with pytest.raises(UserError, match="pass sites="):
        choose_units(nn.Sequential(nn.Conv2d(3, 3, 1)))


def test_distances_are_scipys_wasserstein() -> None:
    random = np.random.default_rng(0)
    values = np.sort(random.normal(size=(4, 50)).astype(np.float32), axis=1)
    found = distances(values)
    for i in range(4):
        for j in range(4):
            assert found[i, j] == pytest.approx(wasserstein_distance(values[i], values[j]))


def test_spread_is_the_mean_over_pairs_within_and_between_classes() -> None:
    # One value an image: 0 and 1 of class 7, 4 and 8 of class 9.
    values = np.array([[0], [1], [4], [8]], dtype=np.float32)
    found = spread(values, np.array([7, 7, 9, 9]))
    assert found == Spread(within=(1 + 4) / 2, between=(4 + 8 + 3 + 7) / 4)
    assert found.ratio == 2.5 / 5.5


def test_responses_are_the_units_outputs_sorted(trained: Trained) -> None:
    images, labels = sample_images(trained, ["3", "8"], 2)
    assert labels.tolist() == [3, 3, 8, 8]
    (unit,) = choose_units(trained.model, r"blocks\.1\.1")
    found = collect_responses(trained, images, [unit])[unit.label]
    with torch.no_grad():
        model = trained.model
        output = model.bn1(model.conv_stem(images))  # type: ignore[operator]
        output = model.blocks[1](model.blocks[0](output))  # type: ignore[index]
    expected = np.sort(output.flatten(1).numpy(), axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not model.blocks[1][1]._forward_hooks, "hooks are taken away"  # type: ignore[index]


def test_sampled_images_are_the_first_of_their_classes(trained: Trained) -> None:
    images, labels = sample_images(trained, 2, 3)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    batch, batch_labels = next(iter(trained.batches()))
    zeros = batch[batch_labels == 0][:3]
    assert torch.equal(images[:3], zeros)
    with pytest.raises(UserError, match="classes=cat"):
        sample_images(trained, ["cat"], 1)
    with pytest.raises(UserError, match="images=500: class 0 has only"):
        sample_images(trained, 2, 500)


def test_networks_with_different_stages_share_a_table() -> None:
    one = {"a": Spread(1.0, 2.0), "b": Spread(3.0, 4.0)}
    heads, rows = spread_table({"x": one, "y": {"c": Spread(1.0, 8.0)}})
    assert len(heads) == 7
    assert rows[0] == ["a", "1.0000", "2.0000", "0.500", "1.0000", "8.0000", "0.125"]
    assert rows[1] == ["b", "3.0000", "4.0000", "0.750", "–", "–", "–"]
