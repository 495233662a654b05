"""The typed schema of every config group, with its checks. Knows nothing of torch.

The YAML files under ``configs/`` fill these dataclasses; Hydra refuses unknown keys and wrong types
while composing, ``__post_init__`` refuses impossible values before anything is created.
"""

from attnorm.config.arguments import read_arguments
from attnorm.config.augment import AugmentConfig
from attnorm.config.compose import compose, compose_node, compose_run
from attnorm.config.data import CocoConfig, DataConfig, LabelledImagesConfig, LoaderConfig
from attnorm.config.detector import CascadeConfig, DetectorConfig, HTCConfig
from attnorm.config.groups import (
    SCHEMAS,
    choices,
    config_directory,
    load_arch,
    load_norm,
    norm_schema,
)
from attnorm.config.locate import locate
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
from attnorm.config.run import (
    CheckpointConfig,
    Config,
    EmaConfig,
    TaskConfig,
    TrackingConfig,
    TrainConfig,
)
from attnorm.config.stored import (
    allow,
    check_names,
    from_container,
    network_from_container,
    to_container,
)

__all__ = [
    "SCHEMAS",
    "ArchConfig",
    "AttentiveNormConfig",
    "AugmentConfig",
    "CascadeConfig",
    "CheckpointConfig",
    "CocoConfig",
    "Config",
    "DataConfig",
    "DetectorConfig",
    "EmaConfig",
    "GroupNormConfig",
    "HTCConfig",
    "LabelledImagesConfig",
    "LoaderConfig",
    "MultistepConfig",
    "NormConfig",
    "OptimConfig",
    "PolynomialConfig",
    "SGDConfig",
    "ScheduleConfig",
    "SqueezeConfig",
    "SwitchNormConfig",
    "TaskConfig",
    "TimmNormConfig",
    "TimmOptimConfig",
    "TrackingConfig",
    "TrainConfig",
    "allow",
    "check_names",
    "choices",
    "compose",
    "compose_node",
    "compose_run",
    "config_directory",
    "from_container",
    "load_arch",
    "load_norm",
    "locate",
    "network_from_container",
    "norm_schema",
    "read_arguments",
    "to_container",
]
