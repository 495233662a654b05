"""The config schema: what it refuses, and that a stored config comes back the same."""

from __future__ import annotations

import json

import pytest

from attnorm import config as schema
from attnorm.errors import UserError
from tests.conftest import compose_config


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("norm.num_components=0", "norm.num_components"),
        ("norm.num_components=[10,10,0,20]", "norm.num_components"),
        ("norm.num_components=[]", "norm.num_components"),
        ("norm.num_components=2.5", "norm.num_components"),
        ("norm.backbone=xn", "norm.backbone"),
        ("epochs=0", "epochs"),
        ("optim.lr=-0.1", "optim.lr"),
        ("optim.lr=nan", "optim.lr"),
        ("optim.momentum=1.0", "optim.momentum"),
        ("optim.weight_decay=-1", "optim.weight_decay"),
        ("batch_size=0", "batch_size"),
        ("grad_accumulation=0", "grad_accumulation"),
        ("precision=fp8", "precision"),
        ("schedule.warmup_epochs=120", "schedule.warmup_epochs"),
        ("train.label_smoothing=1", "train.label_smoothing"),
        ("data.crop_scale=[0.5]", "data.crop_scale"),
        ("data.crop_ratio=[2,1]", "data.crop_ratio"),
        ("data.resize_size=16", "data.resize_size"),
        ("data.std=[0,1,1]", "data.std"),
        ("data.num_classes=1", "data.num_classes"),
        ("data.workers=-1", "data.workers"),
        ("tracking.log_every=0", "tracking.log_every"),
        ("seed=-1", "seed"),
        ("name=''", "name"),
    ],
)
def test_an_impossible_value_is_refused_by_name(override: str, key: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}=.* must be"):
        compose_config(override)


@pytest.mark.parametrize(
    "override", ["norm.kk=1", "epoch=3", "seed=abc", "optim.lr=fast", "data.image_size=2.5"]
)
def test_unknown_keys_and_wrong_types_are_refused_by_name(override: str) -> None:
    with pytest.raises(UserError, match=override.split("=")[0]):
        compose_config(override)


def test_an_option_of_another_normalizer_is_refused() -> None:
    with pytest.raises(UserError, match="num_components"):
        compose_config("norm=bn", "norm.num_components=5")


@pytest.mark.parametrize("group", ["arch", "norm", "loader", "data"])
def test_an_unknown_choice_is_refused_with_the_known_ones(group: str) -> None:
    with pytest.raises(UserError, match=f"{group}=nonesuch is not known: choose one of "):
        compose_config(f"{group}=nonesuch")


def test_the_defaults_are_the_papers_recipe() -> None:
    config = compose_config("data=imagenet")
    assert (config.epochs, config.optim.lr, config.optim.momentum) == (120, 0.2, 0.9)
    assert config.optim.weight_decay == 1e-4
    assert config.optim.norm_weight_decay
    assert config.schedule.warmup_epochs == 0
    assert (config.data.image_size, config.data.resize_size) == (224, 256)


@pytest.mark.parametrize("norm", ["bn", "gn", "sn", "se", "an"])
def test_a_stored_config_comes_back_the_same(norm: str) -> None:
    config = compose_config(f"norm={norm}", "optim.lr=0.3")
    stored = json.loads(json.dumps(schema.to_container(config)))
    assert schema.from_container(stored) == config


def _changed(config: schema.Config, overrides: list[str]) -> schema.Config:
    return schema.compose(overrides, stored=schema.to_container(config))


def test_overrides_of_a_stored_config_are_typed_and_replace_whole_groups() -> None:
    config = compose_config()
    changed = _changed(config, ["data=imagenet", "data.root=/x", "batch_size=7"])
    assert (changed.data.num_classes, changed.data.root, changed.batch_size) == (1000, "/x", 7)
    assert changed.arch == config.arch
    with pytest.raises(UserError, match="batch_size"):
        _changed(config, ["batch_size=many"])
    with pytest.raises(UserError, match=r"data\.rot"):
        _changed(config, ["data.rot=/x"])
    with pytest.raises(UserError, match="data=nonesuch is not known"):
        _changed(config, ["data=nonesuch"])
