"""The typed schema of every config group, with its checks.

The YAML files under ``configs/`` fill these dataclasses; Hydra refuses unknown keys and wrong types
while composing, ``__post_init__`` refuses impossible values before anything is created.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnorm.errors import UserError

T = TypeVar("T")


def config_directory() -> Path:
    """The folder of YAML files: inside an installed wheel, or at the top of a source checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _require(condition: bool, key: str, value: object, wanted: str) -> None:
    if not condition:
        raise UserError(f"{key}={value} is not possible: it must be {wanted}.")


def _require_choice(key: str, value: str, choices: Sequence[str]) -> None:
    _require(value in choices, key, value, "one of " + ", ".join(choices))


def check_num_components(key: str, value: Any) -> None:
    """Refuse anything but a positive integer or a non-empty list of them (one per stage)."""
    counts = value if isinstance(value, list) else [value]
    valid = bool(counts) and all(type(count) is int and count >= 1 for count in counts)
    _require(valid, key, value, "an integer of at least 1, or a list of them, one per stage")


@dataclass
class ArchConfig:
    """A timm architecture and the places in it that a normalizer can take."""

    name: str = MISSING
    timm_model: str = MISSING
    timm_options: dict[str, Any] = field(default_factory=dict)
    # Full-match pattern on module names of batch norms; group 1 is the stage that picks K.
    attentive_sites: str | None = None
    # Integer, or list (one per stage).
    attentive_components: Any = 10
    # Last normalizer of each residual branch, whose scale norm.zero_init_last sets.
    residual_sites: str | None = None
    # Modules that squeeze-and-excitation follows, and the attribute of their blocks that timm
    # keeps for it (null: the module becomes a Sequential of itself and the unit).
    squeeze_sites: str | None = None
    squeeze_slot: str | None = None
    # true: timm's weights from the hub; a path: .pth or .safetensors.
    pretrained: Any = False

    def __post_init__(self) -> None:
        _require(bool(self.timm_model), "arch.timm_model", "''", "the name of a model of timm")
        check_num_components("arch.attentive_components", self.attentive_components)
        _require(
            isinstance(self.pretrained, bool | str),
            "arch.pretrained",
            self.pretrained,
            "true, false or the path of a .pth or .safetensors file",
        )


@dataclass
class NormConfig:
    """What every normalizer has. ``options`` are keyword arguments of a layer of your own."""

    name: str = MISSING
    # Import path of the layer class, called as layer(num_features, **options).
    layer: str = MISSING
    # everywhere | attentive (arch.attentive_sites only) | squeeze (beside the batch norms)
    placement: str = "everywhere"
    # Scale of each residual branch's last normalizer: true 0, false 1, null as timm starts it.
    zero_init_last: bool | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_choice("norm.placement", self.placement, ("everywhere", "attentive", "squeeze"))

    def layer_options(self) -> dict[str, Any]:
        """Keyword arguments for the layer: the typed fields of a subclass, and ``options``."""
        common = {spec.name for spec in fields(NormConfig)}
        own = {key: value for key, value in asdict(self).items() if key not in common}
        return {**own, **self.options}


@dataclass
class GroupNormConfig(NormConfig):
    num_groups: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.num_groups >= 1, "norm.num_groups", self.num_groups, "at least 1")


@dataclass
class SwitchNormConfig(NormConfig):
    using_bn: bool = True


@dataclass
class SqueezeConfig(NormConfig):
    reduction: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.reduction >= 1, "norm.reduction", self.reduction, "at least 1")

    def layer_options(self) -> dict[str, Any]:
        """timm's unit takes the reciprocal of the ratio that the SE paper speaks of."""
        return {"rd_ratio": 1 / self.reduction, **self.options}


@dataclass
class AttentiveNormConfig(NormConfig):
    # Integer, list (one per stage), or null for the architecture's own attentive_components.
    num_components: Any = None
    backbone: str = "bn"
    attention: str = "sigmoid"
    separate_attention: bool = False
    num_groups: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_components is not None:
            check_num_components("norm.num_components", self.num_components)
        _require_choice("norm.backbone", self.backbone, ("bn", "gn", "in", "ln", "sn"))
        _require_choice("norm.attention", self.attention, ("sigmoid", "conv_relu", "released"))
        _require(self.num_groups >= 1, "norm.num_groups", self.num_groups, "at least 1")


@dataclass
class DataConfig:
    """An image data set: where it is, how an image becomes a training or evaluation crop."""

    name: str = MISSING
    # folder: root/train/CLASS/* and root/val/CLASS/*; digits: built once from scikit-learn.
    source: str = "folder"
    root: str | None = None
    num_classes: int | None = None
    image_size: int = 224
    # Short side before the centre crop of an evaluation image.
    resize_size: int = 256
    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    horizontal_flip: bool = True
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    # Processes of the torch loader (0: none), threads of DALI.
    workers: int = 4
    # Put the next image in the place of one that cannot be decoded, instead of stopping.
    skip_broken: bool = False
    # The size of the data set that loader=synthetic stands in for.
    num_train_images: int = 10_000
    num_val_images: int = 1_000

    def __post_init__(self) -> None:
        _require_choice("data.source", self.source, ("folder", "digits"))
        if self.num_classes is not None:
            _require(self.num_classes >= 2, "data.num_classes", self.num_classes, "at least 2")
        _require(self.image_size >= 1, "data.image_size", self.image_size, "at least 1")
        _require(
            self.resize_size >= self.image_size,
            "data.resize_size",
            self.resize_size,
            f"at least data.image_size={self.image_size}",
        )
        for key, low, high in (
            ("data.crop_scale", *self._pair("crop_scale")),
            ("data.crop_ratio", *self._pair("crop_ratio")),
        ):
            _require(0 < low <= high, key, [low, high], "a pair 0 < low <= high")
        _require(self.crop_scale[1] <= 1, "data.crop_scale", self.crop_scale, "at most 1")
        for key, values in (("data.mean", self.mean), ("data.std", self.std)):
            _require(len(values) == 3, key, values, "three numbers, one per colour channel")
        _require(min(self.std) > 0, "data.std", self.std, "three positive numbers")
        _require(self.workers >= 0, "data.workers", self.workers, "0 or more")
        for key in ("num_train_images", "num_val_images"):
            _require(getattr(self, key) >= 1, f"data.{key}", getattr(self, key), "at least 1")

    def _pair(self, name: str) -> tuple[float, float]:
        values = getattr(self, name)
        _require(len(values) == 2, f"data.{name}", values, "a pair of numbers, [low, high]")
        return values[0], values[1]


@dataclass
class LoaderConfig:
    name: str = MISSING
    # Batches decoded ahead (per worker process with torch).
    prefetch: int = 2
    # Images of an epoch of loader=synthetic; null for as many as the data set has.
    images: int | None = None

    def __post_init__(self) -> None:
        _require_choice("loader.name", self.name, ("auto", "dali", "torch", "synthetic"))
        _require(self.prefetch >= 1, "loader.prefetch", self.prefetch, "at least 1")
        if self.images is not None:
            _require(self.images >= 1, "loader.images", self.images, "at least 1")


@dataclass
class OptimConfig:
    """Stochastic gradient descent; ``lr`` is for a global batch of 512 images."""

    name: str = "sgd"
    lr: float = 0.2
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    # Weight decay on scale and offset parameters of normalizers too, as the authors do.
    norm_weight_decay: bool = True

    def __post_init__(self) -> None:
        _require_choice("optim.name", self.name, ("sgd",))
        _require(_finite(self.lr) and self.lr > 0, "optim.lr", self.lr, "positive")
        _require(0 <= self.momentum < 1, "optim.momentum", self.momentum, "in [0, 1)")
        _require(
            _finite(self.weight_decay) and self.weight_decay >= 0,
            "optim.weight_decay",
            self.weight_decay,
            "0 or more",
        )
        _require(
            not self.nesterov or self.momentum > 0,
            "optim.nesterov",
            self.nesterov,
            "false when optim.momentum=0",
        )


def _finite(value: float) -> bool:
    return math.isfinite(value)


@dataclass
class TrainConfig:
    label_smoothing: float = 0.0
    # Batch statistics over the images of all processes instead of each process's own.
    sync_bn: bool = False

    def __post_init__(self) -> None:
        _require(
            0 <= self.label_smoothing < 1,
            "train.label_smoothing",
            self.label_smoothing,
            "in [0, 1)",
        )


@dataclass
class ScheduleConfig:
    """Learning rate by iteration: linear warmup, then half a cosine down to ``final_lr``."""

    name: str = "cosine"
    warmup_epochs: float = 0.0
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        _require_choice("schedule.name", self.name, ("cosine",))
        _require(
            _finite(self.warmup_epochs) and self.warmup_epochs >= 0,
            "schedule.warmup_epochs",
            self.warmup_epochs,
            "0 or more",
        )
        _require(
            _finite(self.final_lr) and self.final_lr >= 0,
            "schedule.final_lr",
            self.final_lr,
            "0 or more",
        )


@dataclass
class TrackingConfig:
    tensorboard: bool = True
    # Steps between two lines of metrics.jsonl and TensorBoard.
    log_every: int = 50

    def __post_init__(self) -> None:
        _require(self.log_every >= 1, "tracking.log_every", self.log_every, "at least 1")


@dataclass
class CheckpointConfig:
    """When checkpoints are written, besides after every epoch, and how many stay."""

    every_minutes: float | None = 15.0
    every_steps: int | None = None
    keep_last: int = 2
    keep_best: int = 1

    def __post_init__(self) -> None:
        for key in ("every_minutes", "every_steps"):
            value = getattr(self, key)
            _require(value is None or value > 0, f"checkpoint.{key}", value, "positive or null")
        for key in ("keep_last", "keep_best"):
            value = getattr(self, key)
            _require(value >= 1, f"checkpoint.{key}", value, "at least 1")


@dataclass
class EmaConfig:
    """A moving average of the weights, evaluated beside them; null for none."""

    decay: float | None = None

    def __post_init__(self) -> None:
        valid = self.decay is None or 0 < self.decay < 1
        _require(valid, "ema.decay", self.decay, "between 0 and 1, or null for no average")


@dataclass
class Config:
    """One training run, whole."""

    name: str = MISSING
    arch: ArchConfig = MISSING
    norm: NormConfig = MISSING
    data: DataConfig = MISSING
    loader: LoaderConfig = MISSING
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    seed: int = 0
    epochs: int = 120
    # Images per process and step; the global batch is this × processes × grad_accumulation.
    batch_size: int = 128
    grad_accumulation: int = 1
    device: str = "auto"
    precision: str = "auto"
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    resume: str = "auto"
    # stop, or rewind: go back to the last checkpoint and take the images in another order.
    on_nonfinite: str = "stop"
    max_rewinds: int = 3
    # fp16 steps in a row whose gradients overflow before that counts as not finite.
    max_skipped_steps: int = 50
    # How long processes wait for one that does not answer.
    timeout_minutes: float = 10.0

    def __post_init__(self) -> None:
        _require(bool(self.name), "name", repr(self.name), "a folder name")
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        _require(
            self.grad_accumulation >= 1, "grad_accumulation", self.grad_accumulation, "at least 1"
        )
        _require_choice("device", self.device, ("auto", "cpu", "cuda"))
        _require_choice("precision", self.precision, ("auto", "fp32", "fp16", "bf16"))
        _require_choice("resume", self.resume, ("auto", "never"))
        _require_choice("on_nonfinite", self.on_nonfinite, ("stop", "rewind"))
        _require(self.max_rewinds >= 1, "max_rewinds", self.max_rewinds, "at least 1")
        _require(
            self.max_skipped_steps >= 1, "max_skipped_steps", self.max_skipped_steps, "at least 1"
        )
        _require(self.timeout_minutes > 0, "timeout_minutes", self.timeout_minutes, "positive")
        _require(
            self.schedule.warmup_epochs < self.epochs,
            "schedule.warmup_epochs",
            self.schedule.warmup_epochs,
            f"less than epochs={self.epochs}",
        )


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
