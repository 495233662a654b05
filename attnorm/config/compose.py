"""From YAML files, Hydra and checkpoints to the typed config, and back to plain containers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnorm.config.model import (
    ArchConfig,
    AttentiveNormConfig,
    GroupNormConfig,
    NormConfig,
    SqueezeConfig,
    SwitchNormConfig,
)
from attnorm.config.run import Config
from attnorm.errors import UserError

T = TypeVar("T")


def config_directory() -> Path:
    """The folder of YAML files: inside an installed wheel, or at the top of a source checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


NORM_SCHEMAS: Mapping[str, type[NormConfig]] = {
    "base_norm": NormConfig,
    "group_norm": GroupNormConfig,
    "switch_norm": SwitchNormConfig,
    "squeeze": SqueezeConfig,
    "attentive_norm": AttentiveNormConfig,
}


def register_schemas() -> None:
    """Put the schemas where Hydra finds them. A YAML file of ``norm`` names its own schema."""
    store = ConfigStore.instance()
    store.store(name="config_schema", node=Config)
    for name, schema in NORM_SCHEMAS.items():
        store.store(group="norm/schema", name=name, node=schema)


def from_omegaconf(composed: DictConfig) -> Config:
    """The composed config as plain dataclasses, interpolations resolved and values checked."""
    return _instantiate(composed, Config)


def from_container(container: Mapping[str, Any]) -> Config:
    """The inverse of :func:`to_container`, for a config that was stored in a checkpoint.

    Raises:
        UserError: a key or a value that this version does not know.
    """
    values = dict(container)
    norm = dict(values.pop("norm"))
    schema = _norm_schema(norm)
    typed = OmegaConf.merge(OmegaConf.structured(Config), {"norm": OmegaConf.structured(schema)})
    try:
        return _instantiate(OmegaConf.merge(typed, values, {"norm": norm}), Config)
    except OmegaConfBaseException as error:
        raise UserError(
            f"The stored config does not fit this version: {_explain(error)}"
        ) from error


def to_container(config: Config) -> dict[str, Any]:
    """The config as plain dicts, lists, strings and numbers."""
    return asdict(config)


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """``config`` with ``key=value`` and ``data=NAME`` / ``loader=NAME`` overrides.

    Raises:
        UserError: an unknown key, a wrong type or an impossible value.
    """
    values = to_container(config)
    norm = _norm_schema(values["norm"])
    for override in overrides:
        key, _, value = override.partition("=")
        if key in ("data", "loader"):
            values[key] = load_group(key, value)
    assignments = [o for o in overrides if o.partition("=")[0] not in ("data", "loader")]
    typed = OmegaConf.merge(OmegaConf.structured(Config), {"norm": OmegaConf.structured(norm)})
    try:
        merged = OmegaConf.merge(typed, values, OmegaConf.from_dotlist(assignments))
    except OmegaConfBaseException as error:
        raise UserError(_explain(error)) from error
    return _instantiate(merged, Config)


def load_arch(name: str, **overrides: Any) -> ArchConfig:
    """``configs/arch/NAME.yaml`` with ``overrides``, for use without Hydra."""
    values = load_group("arch", name)
    return _instantiate(_merge(ArchConfig, values, overrides), ArchConfig)


def load_norm(name: str, **overrides: Any) -> NormConfig:
    """``configs/norm/NAME.yaml`` with ``overrides``, for use without Hydra."""
    values = load_group("norm", name)
    schema = NORM_SCHEMAS[_schema_name(values.pop("defaults"))]
    return _instantiate(_merge(schema, values, overrides), schema)


def load_group(group: str, name: str) -> dict[str, Any]:
    """The values of ``configs/GROUP/NAME.yaml``.

    Raises:
        UserError: there is no such file; the message lists what there is.
    """
    folder = config_directory() / group
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise UserError(f"{group}={name} is not known: choose one of {known}.")
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _schema_name(defaults: list[str]) -> str:
    """``attentive_norm`` of a defaults list ``[schema/attentive_norm@_here_]``."""
    return defaults[0].removeprefix("schema/").removesuffix("@_here_")


def _norm_schema(norm: Mapping[str, Any]) -> type[NormConfig]:
    """The schema whose fields are exactly the stored ones (a checkpoint has no defaults list)."""
    for schema in NORM_SCHEMAS.values():
        if {spec.name for spec in fields(schema)} == set(norm):
            return schema
    raise UserError(
        f"The stored norm config has keys no normalizer of this version has: {sorted(norm)}."
    )


def _merge(schema: type[Any], values: dict[str, Any], overrides: dict[str, Any]) -> Any:
    try:
        return OmegaConf.merge(schema, values, overrides)
    except OmegaConfBaseException as error:
        raise UserError(_explain(error)) from error


def _instantiate(config: Any, schema: type[T]) -> T:
    try:
        instance = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(_explain(error)) from error
    assert isinstance(instance, schema)
    return instance


def _explain(error: OmegaConfBaseException) -> str:
    message = str(error).splitlines()[0]
    return f"{error.full_key}: {message}" if error.full_key else message
