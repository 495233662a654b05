"""The typed schema of every config group, with its checks. Knows nothing of torch.

The YAML files under ``configs/`` fill these dataclasses; Hydra refuses unknown keys and wrong types
while composing, ``__post_init__`` refuses impossible values before anything is created.
"""

from attnorm.config.compose import (
    NORM_SCHEMAS,
    config_directory,
    from_container,
    from_omegaconf,
    load_arch,
    load_group,
    load_norm,
    register_schemas,
    to_container,
    with_overrides,
)
from attnorm.config.data import DataConfig, LoaderConfig
from attnorm.config.model import (
    ArchConfig,
    AttentiveNormConfig,
    GroupNormConfig,
    NormConfig,
    SqueezeConfig,
    SwitchNormConfig,
)
from attnorm.config.run import (
    CheckpointConfig,
    Config,
    EmaConfig,
    OptimConfig,
    ScheduleConfig,
    TrackingConfig,
    TrainConfig,
)

__all__ = [
    "NORM_SCHEMAS",
    "ArchConfig",
    "AttentiveNormConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EmaConfig",
    "GroupNormConfig",
    "LoaderConfig",
    "NormConfig",
    "OptimConfig",
    "ScheduleConfig",
    "SqueezeConfig",
    "SwitchNormConfig",
    "TrackingConfig",
    "TrainConfig",
    "config_directory",
    "from_container",
    "from_omegaconf",
    "load_arch",
    "load_group",
    "load_norm",
    "register_schemas",
    "to_container",
    "with_overrides",
]
