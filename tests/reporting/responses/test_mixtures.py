"""λ of a validation set, and its statistics against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attnorm.norms.observe import attentive_layers
from attnorm.reporting.responses.mixtures import Mixture, collect_mixtures, fetch_pixels
from attnorm.run.trained import load_trained
from tests.reporting.models import write_checkpoint


def test_effective_components_are_the_exponential_of_the_entropy() -> None:
    even, single = [0.5, 0.5, 0.5, 0.5], [0.9, 0.0, 0.0, 0.0]
    labels = np.array([0, 1])
    assert Mixture("a", np.array([even, even]), labels).effective_per_image() == pytest.approx(4)
    assert Mixture("a", np.array([single, single]), labels).effective_overall() == pytest.approx(1)
    weights = np.random.default_rng(0).random((5, 3))
    found = Mixture("a", weights, np.arange(5))
    shares = weights / weights.sum(1, keepdims=True)
    by_hand = np.exp(-(shares * np.log(shares)).sum(1)).mean()
    assert found.effective_per_image() == pytest.approx(by_hand)
    # Each image uses one component, but not the same one.
    turns = Mixture("a", np.eye(4), np.arange(4))
    assert (turns.effective_per_image(), turns.effective_overall()) == pytest.approx((1, 4))
    assert Mixture("a", np.zeros((2, 3)), labels).effective_overall() == 1


def test_the_share_between_classes_is_eta_squared() -> None:
    weights = np.array([[0.0, 0.3], [0.0, 0.5], [1.0, 0.3], [1.0, 0.5]])
    found = Mixture("a", weights, np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(found.class_share(), [1.0, 0.0], atol=1e-12)
    present, means = found.by_class()
    assert present.tolist() == [0, 1]
    np.testing.assert_allclose(means, [[0.0, 0.4], [1.0, 0.4]])
    assert found.drivers(2).tolist() == [[2, 3], [1, 3]]


def test_all_validation_images_are_seen_and_the_drivers_can_be_shown(tmp_path: Path) -> None:
    trained = load_trained(write_checkpoint(tmp_path, "an"), ["loader=torch", "data.workers=0"])
    mixtures = collect_mixtures(trained)
    assert [m.site for m in mixtures] == list(attentive_layers(trained.model))
    assert {len(m.weights) for m in mixtures} == {360}
    assert (np.bincount(mixtures[0].labels) > 0).sum() == 10
    assert len(collect_mixtures(trained, limit=70)[0].labels) == 70

    strongest = int(mixtures[-1].drivers(1)[0, 0])
    pixels = fetch_pixels(trained, {strongest, 0})
    assert set(pixels) == {strongest, 0}
    assert pixels[strongest].shape == (32, 32, 3)
    assert pixels[strongest].std() > 20, "a digit, not a blank"
