"""One grammar for every command: Hydra's, ``group=option key=value``."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnorm.config.augment import AugmentConfig
from attnorm.config.data import LoaderConfig
from attnorm.config.groups import SCHEMAS, choices, config_directory, instantiate
from attnorm.config.model import ArchConfig
from attnorm.config.run import Config
from attnorm.config.stored import with_schema_names
from attnorm.errors import UserError

# Values that are taken as they are typed, blanks, umlauts, commas and all.
VERBATIM = (
    *("name", "data.root", "arch.pretrained", "weights"),
    *("hydra.run.dir", "hydra.searchpath"),
)
# Of Hydra's own keys, those that mean something here.
_HYDRA_KEYS = ("hydra.run.dir", "hydra.searchpath")
_STORED = "stored"


def compose(overrides: Sequence[str] = (), stored: Mapping[str, Any] | None = None) -> Config:
    """The config that ``overrides`` make of the defaults, or of a config that was ``stored``.

    Raises:
        UserError: an unknown group, option or key, a wrong type, or an impossible value.
    """
    return compose_run(overrides, stored)[0]


def compose_run(
    overrides: Sequence[str] = (), stored: Mapping[str, Any] | None = None
) -> tuple[Config, Path]:
    """The config, and the folder of its run.

    Raises:
        UserError: see :func:`compose`.
    """
    composed = compose_node(overrides, stored)
    run_dir = Path(composed.hydra.run.dir)
    del composed["hydra"]
    return instantiate(composed, Config), run_dir


def compose_node(
    overrides: Sequence[str] = (), stored: Mapping[str, Any] | None = None
) -> DictConfig:
    """What Hydra composes, its own node included, before the values are checked.

    Raises:
        UserError: see :func:`compose`.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    _register_schemas()
    if stored is not None:
        _register_stored(stored)
    typed = [as_typed(override) for override in overrides]
    name = _STORED if stored is not None else "train"
    try:
        with initialize_config_dir(str(config_directory()), version_base="1.3"):
            composed = hydra_compose(name, typed, return_hydra_config=True)
        composed.hydra.run.dir = str(composed.hydra.run.dir)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explained(error, overrides)) from error
    OmegaConf.set_struct(composed, False)
    _check_recipe(composed)
    chosen = composed.hydra.runtime.choices.get("recipe")
    if chosen is not None:
        composed.recipe_name = chosen
    return composed


@cache
def _register_schemas() -> None:
    """Put the schemas where Hydra finds them."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="config_schema", node=Config)
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group=f"{group}/schema", name=name, node=schema)


def _register_stored(stored: Mapping[str, Any]) -> None:
    """Put a stored config where Hydra finds it, as options called "stored"."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    values = with_schema_names(stored)
    defaults: list[Any] = ["config_schema"]
    for group in [key for key in values if (config_directory() / key).is_dir()]:
        if values[group] is None:  # a group that the task does not use
            continue
        node = dict(values.pop(group))
        if "schema" in node:
            node = {"defaults": [{"schema@_here_": node["schema"]}, "_self_"], **node}
        store.store(group=group, name=_STORED, node=node)
        defaults.append({group: _STORED})
    run = {"hydra": {"run": {"dir": "."}}}
    store.store(name=_STORED, node={"defaults": [*defaults, "_self_"], **values, **run})


def as_typed(override: str) -> str:
    """The override in Hydra's grammar: a name or a path in the quotes that it may need.

    Raises:
        UserError: a key of Hydra's that has no meaning here, or an argument that is no override.
    """
    key, separator, value = override.partition("=")
    bare = key.lstrip("+~")
    if bare.startswith("hydra.") and bare not in _HYDRA_KEYS:
        raise UserError(
            f"{bare} has no effect here: of Hydra's own keys there are {' and '.join(_HYDRA_KEYS)}."
        )
    if not separator and not override.startswith("~"):
        raise UserError(f"{override!r} is not key=value.")
    if value == "null" and (config_directory() / bare).is_dir():
        raise UserError(f"{override}: choose one of {', '.join(choices(bare))}, or leave it out.")
    if bare not in VERBATIM or value in ("", "null", "true", "false") or value[0] in "'\"[":
        return override
    return f"{key}={quoted(value)}"


def quoted(value: str) -> str:
    """A text in single quotes of Hydra's grammar, where backslashes before a quote are doubled."""
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", value)
    ending = re.search(r"\\*$", escaped)
    assert ending is not None
    return f"'{escaped}{ending[0]}'"


def _check_recipe(composed: DictConfig) -> None:
    """Where a recipe has a version for one architecture, that one is meant."""
    chosen = composed.hydra.runtime.choices
    own = f"{chosen.get('recipe')}_{chosen.get('arch')}"
    if own in choices("recipe"):
        raise UserError(f"recipe={chosen.recipe} is for other networks: use recipe={own}.")


def _explained(error: Exception, overrides: Sequence[str]) -> str:
    """What Hydra refuses, in a line or two that name the key and the way out."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        known = [name for name in error.options or () if name != _STORED]
        return f"{group}={option} is not known: choose one of {', '.join(known)}."
    if isinstance(error, OverrideParseException) or "LexerNoViableAlt" in str(error):
        wrong = str(getattr(error, "override", "")) or overrides[0]
        key, _, value = wrong.partition("=")
        example = shlex.quote(f'{key}="{value}"')
        return (
            f"{wrong} cannot be read: a value with blanks, brackets, quotes or other signs needs"
            f" quotes of its own.\nWrite {example}"
        )
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    where = getattr(cause, "full_key", None)
    lines = [line for line in str(cause).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    if where and "not in" in reason:
        return f"{where} is not a key of this config{_close_to(where)}"
    if where:
        return f"{where}: {reason}"
    told = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(told[:2]) if told[0].endswith(":") else told[0]


def _close_to(key: str) -> str:
    """Keys that somebody may have meant."""
    schemas: dict[str, list[type[Any]]] = {
        "arch": [ArchConfig],
        "augment": [AugmentConfig],
        "loader": [LoaderConfig],
        **{group: list(members.values()) for group, members in SCHEMAS.items()},
    }
    known = [spec.name for spec in fields(Config)]
    for group, members in schemas.items():
        known += [f"{group}.{spec.name}" for schema in members for spec in fields(schema)]
    if key in known:
        return f", but of another {key.partition('.')[0]}="
    close = difflib.get_close_matches(key, dict.fromkeys(known), n=3)
    return f": did you mean {', '.join(close)}?" if close else ": train.py --help lists all"
