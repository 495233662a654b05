"""The YAML files under ``configs/``, and the schemas that they name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnorm.config.data import CocoConfig, LabelledImagesConfig
from attnorm.config.detector import DETECTOR_SCHEMAS
from attnorm.config.model import (
    ArchConfig,
    AttentiveNormConfig,
    GroupNormConfig,
    NormConfig,
    SqueezeConfig,
    SwitchNormConfig,
    TimmNormConfig,
)
from attnorm.config.optim import (
    MultistepConfig,
    OptimConfig,
    PolynomialConfig,
    ScheduleConfig,
    SGDConfig,
    TimmOptimConfig,
)
from attnorm.config.run import TaskConfig
from attnorm.errors import UserError

T = TypeVar("T")

# By group: the schemas of it that a YAML file can name, "defaults: [{schema@_here_: NAME}]".
SCHEMAS: Mapping[str, Mapping[str, type[Any]]] = {
    "task": {"base_task": TaskConfig},
    "data": {"labelled_images": LabelledImagesConfig, "coco": CocoConfig},
    "detector": DETECTOR_SCHEMAS,
    "norm": {
        "base_norm": NormConfig,
        "group_norm": GroupNormConfig,
        "switch_norm": SwitchNormConfig,
        "squeeze": SqueezeConfig,
        "attentive_norm": AttentiveNormConfig,
        "timm_norm": TimmNormConfig,
    },
    "optim": {"base_optim": OptimConfig, "sgd": SGDConfig, "timm_optim": TimmOptimConfig},
    "schedule": {
        "base_schedule": ScheduleConfig,
        "multistep": MultistepConfig,
        "polynomial": PolynomialConfig,
    },
}
_SCHEMA_KEY = "schema@_here_"


def config_directory() -> Path:
    """The folder of YAML files: inside an installed wheel, or at the top of a source checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def choices(group: str) -> list[str]:
    """What ``GROUP=`` can be."""
    return sorted(path.stem for path in (config_directory() / group).glob("*.yaml"))


def load_arch(name: str, **overrides: Any) -> ArchConfig:
    """``configs/arch/NAME.yaml`` with ``overrides``; needs no Hydra.

    Raises:
        UserError: an unknown name, key or value.
    """
    values = _read("arch", name)
    return instantiate(_merge(ArchConfig, values, overrides), ArchConfig)


def load_norm(name: str, **overrides: Any) -> NormConfig:
    """``configs/norm/NAME.yaml`` with ``overrides``; needs no Hydra.

    Raises:
        UserError: an unknown name, key or value.
    """
    typed = norm_schema(name)
    values = _read("norm", name)
    del values["defaults"]
    return instantiate(_merge(typed, values, overrides), typed)


def norm_schema(name: str) -> type[NormConfig]:
    """The schema that ``configs/norm/NAME.yaml`` names.

    Raises:
        UserError: there is no such file, or it names none.
    """
    match _read("norm", name).get("defaults"):
        case [{"schema@_here_": str(schema)}, *_] if schema in SCHEMAS["norm"]:
            typed: type[NormConfig] = SCHEMAS["norm"][schema]
            return typed
        case other:
            raise UserError(
                f"configs/norm/{name}.yaml has defaults={other}: write"
                f" [{{{_SCHEMA_KEY}: SCHEMA}}] with one of {', '.join(SCHEMAS['norm'])}."
            )


def _read(group: str, name: str) -> dict[str, Any]:
    path = config_directory() / group / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"{group}={name} is not known: choose one of {', '.join(choices(group))}.")
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _merge(schema: type[Any], values: dict[str, Any], overrides: dict[str, Any]) -> Any:
    try:
        return OmegaConf.merge(schema, values, overrides)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error


def instantiate(config: Any, schema: type[T]) -> T:
    """A typed OmegaConf node as its dataclass, whose checks run.

    Raises:
        UserError: a value is missing, of a wrong type or impossible.
    """
    try:
        instance = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error
    assert isinstance(instance, schema)
    return instance


def explain(error: OmegaConfBaseException) -> str:
    """The first line of what OmegaConf says, behind the key that it is about."""
    message = str(error).splitlines()[0]
    return f"{error.full_key}: {message}" if error.full_key else message
