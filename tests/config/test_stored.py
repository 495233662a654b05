"""Configs out of files: those of version 0.1 come back, and none has a say in what is imported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from attnorm import config as schema
from attnorm.errors import UserError
from tests.conftest import compose_config


def older(config: schema.Config) -> dict[str, Any]:
    """What version 0.1 stored for it: no schema's name, no task, nothing that came later."""
    stored = schema.to_container(config)
    for key in ("task", "augment", "recipe_name"):
        del stored[key]
    for group, later in (
        ("norm", ("schema", "weight_standardization", "initial_scale")),
        ("optim", ("schema", "factory", "reference_batch", "bias_weight_decay", "options")),
        ("schedule", ("schema", "curve", "options")),
    ):
        stored[group] = {key: value for key, value in stored[group].items() if key not in later}
    return stored


@pytest.mark.parametrize("norm", ["bn", "gn", "sn", "se", "an"])
def test_a_config_of_version_0_1_comes_back_the_same(norm: str) -> None:
    config = compose_config(f"norm={norm}", "optim.lr=0.3", "schedule.warmup_epochs=2")
    assert schema.from_container(older(config)) == replace(config, recipe_name=None)
    assert schema.compose(["batch_size=7"], stored=older(config)).norm == config.norm


def test_the_stored_config_names_its_schemas() -> None:
    stored = schema.to_container(compose_config("norm=gn"))
    names = {group: stored[group]["schema"] for group in ("norm", "optim", "schedule", "task")}
    assert names == {
        "norm": "group_norm",
        "optim": "sgd",
        "schedule": "base_schedule",
        "task": "base_task",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": {"schema": "nonesuch"}}, r"norm\.schema=nonesuch"),
        ({"norm": {"layers": 3}}, "layers"),
        ({"epochs": "many"}, "epochs"),
        ({"data": {"root": "${oc.env:HOME}"}}, r"data\.root.*a stored value is a plain one"),
        ({"arch": {"timm_options": {"pretrained_cfg": {}}}}, r"timm_options\.pretrained_cfg"),
        ({"arch": {"timm_options": {"checkpoint_path": "/x"}}}, r"timm_options\.checkpoint_path"),
        ({"arch": {"timm_options": {"cache_dir": "/x"}}}, r"timm_options\.cache_dir"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    stored = schema.to_container(compose_config())
    for key, value in change.items():
        stored[key] = {**stored[key], **value} if isinstance(value, dict) else value
    with pytest.raises(UserError, match=message):
        schema.from_container(stored)


def test_a_stored_config_names_code_of_a_closed_list(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose_config("norm.layer=evilmod.Evil")
    with pytest.raises(
        UserError, match=r"x\.pt names norm\.layer=evilmod\.Evil.*\n.*allow=evilmod"
    ):
        schema.check_names(config, "x.pt")
    schema.check_names(config, "x.pt", allowed=["evilmod.Evil"])
    schema.check_names(compose_config("norm.layer=torch.nn.InstanceNorm2d"), "x.pt")
    with pytest.raises(UserError, match=r"task\.task_class=evilmod\.Task"):
        schema.check_names(compose_config("task.task_class=evilmod.Task"), "x.pt")
    monkeypatch.setattr("attnorm.config.stored._allowed", set())
    schema.allow("evilmod.Evil")
    schema.check_names(config, "x.pt")
