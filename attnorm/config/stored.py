"""The config as plain containers, as it stands in checkpoints and run folders, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnorm.config.groups import SCHEMAS, explain, instantiate
from attnorm.config.model import ArchConfig, NormConfig
from attnorm.config.run import Config
from attnorm.errors import UserError

# Whose modules a config out of a file may name: no code comes with a file.
_OWN = ("attnorm.", "torch.nn.", "timm.layers.")
_allowed: set[str] = set()

# Keys of normalizers that version 0.1 did not have.
_LATER_NORM_KEYS = {"schema", "weight_standardization", "initial_scale", "timm_name"}
# What a group was before it named its schema.
_FIRST_SCHEMAS = {
    "norm": None,
    "data": "labelled_images",
    "optim": "sgd",
    "schedule": "base_schedule",
}


def to_container(config: Config) -> dict[str, Any]:
    """The config as plain dicts, lists, strings and numbers."""
    return asdict(config)


def from_container(container: Mapping[str, Any]) -> Config:
    """The inverse of :func:`to_container`; what an older version did not store gets its default.

    Nothing that it names is imported; see :func:`check_names` for that.

    Raises:
        UserError: a key or a value that this version does not know.
    """
    values = {key: _checked(key, value) for key, value in container.items()}
    try:
        typed = OmegaConf.merge(OmegaConf.structured(Config), _with_schemas(values))
    except OmegaConfBaseException as error:
        raise UserError(f"The stored config does not fit this version: {explain(error)}") from error
    return instantiate(typed, Config)


def network_from_container(
    container: Mapping[str, Any], source: str, allowed: Collection[str] = ()
) -> tuple[ArchConfig, NormConfig]:
    """The two configs of a network out of a file: its keys ``arch`` and ``norm``.

    Args:
        source, allowed: as in :func:`check_names`.

    Raises:
        UserError: a key or a value that this version does not know, or a class that is not allowed.
    """
    values = {key: _checked(key, container[key]) for key in ("arch", "norm")}
    try:
        arch = OmegaConf.merge(OmegaConf.structured(ArchConfig), values["arch"])
        norm = _with_schemas({"norm": values["norm"]})["norm"]
    except OmegaConfBaseException as error:
        raise UserError(f"{source} does not fit this version: {explain(error)}") from error
    typed = instantiate(norm, NormConfig)
    _check_name("norm.layer", typed.layer, source, allowed)
    return instantiate(arch, ArchConfig), typed


def with_schema_names(container: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config in which each group names its schema, as version 0.1 did not.

    Raises:
        UserError: a group of keys that no schema of this version has.
    """
    values = dict(container)
    for group, older in _FIRST_SCHEMAS.items():
        if group in values and "schema" not in values[group]:
            values[group] = {"schema": older or _norm_schema(values[group]), **values[group]}
    return values


def _with_schemas(container: Mapping[str, Any]) -> dict[str, Any]:
    """The container with its groups merged into the schemas that they name."""
    values = with_schema_names(container)
    for group, known in SCHEMAS.items():
        if values.get(group) is None:
            continue
        name = values[group].get("schema")
        if name not in known:
            raise UserError(
                f"The stored config has {group}.schema={name}, unknown to this version."
            )
        values[group] = OmegaConf.merge(OmegaConf.structured(known[name]), values[group])
    return values


def _norm_schema(norm: Mapping[str, Any]) -> str:
    """Version 0.1 told a normalizer's schema by its set of keys."""
    for name, schema in SCHEMAS["norm"].items():
        known = {spec.name for spec in fields(schema)} - _LATER_NORM_KEYS
        if known == set(norm) - _LATER_NORM_KEYS:
            return name
    raise UserError(
        f"The stored norm config has keys no normalizer of this version has: {sorted(norm)}."
    )


def _checked(key: str, value: Any) -> Any:
    """Refuse interpolations: a file has no say in what else is read."""
    if isinstance(value, Mapping):
        return {name: _checked(f"{key}.{name}", item) for name, item in value.items()}
    if isinstance(value, list):
        return [_checked(key, item) for item in value]
    if isinstance(value, str) and "${" in value:
        raise UserError(f"The stored config has {key}={value!r}: a stored value is a plain one.")
    return value


def allow(*paths: str) -> None:
    """Let checkpoints name classes of yours, such as ``mypackage.MyNorm``, in this process."""
    _allowed.update(paths)


def check_names(config: Config, source: str, allowed: Collection[str] = ()) -> None:
    """Refuse a config out of a file that names code which is not of a closed list.

    Args:
        source: such as ``checkpoint=runs/x/best.pt``, for the message.
        allowed: import paths that a person allows by name.

    Raises:
        UserError: with the name, and how to allow it.
    """
    _check_name("norm.layer", config.norm.layer, source, allowed)
    _check_name("task.task_class", config.task.task_class, source, allowed)


def _check_name(key: str, path: str, source: str, allowed: Collection[str]) -> None:
    if not f"{path}.".startswith(_OWN) and path not in _allowed | set(allowed):
        raise UserError(
            f"{source} names {key}={path}, which is not of {', '.join(_OWN)[:-1]} and is not"
            f" imported.\nIf you trust that code, pass allow={path}."
        )
