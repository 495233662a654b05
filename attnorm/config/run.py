"""How a run goes: tracking, checkpoints, and everything at the top level."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from attnorm.config.augment import AugmentConfig
from attnorm.config.checks import require, require_choice
from attnorm.config.data import DataConfig, LoaderConfig
from attnorm.config.detector import DetectorConfig
from attnorm.config.model import ArchConfig, NormConfig
from attnorm.config.optim import OptimConfig, ScheduleConfig

# Those that record CUDA graphs and replay them.
GRAPH_MODES = ("reduce-overhead", "max-autotune")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass
class TaskConfig:
    """What is learnt: the loss, the metrics, and how a model and its loaders are built."""

    schema: str = "base_task"
    name: str = "classification"
    # Import path of a class that fulfils attnorm.training.task.ConfigurableTask.
    task_class: str = "attnorm.classification.Classification"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainConfig:
    label_smoothing: float = 0.0
    # cross_entropy, or binary_cross_entropy of each class by itself.
    loss: str = "cross_entropy"
    # With binary_cross_entropy: a class counts in full if its share of a mixed image is more.
    target_threshold: float | None = None
    # Batch statistics over the images of all processes instead of each process's own.
    sync_bn: bool = False

    def __post_init__(self) -> None:
        require_choice("train.loss", self.loss, ("cross_entropy", "binary_cross_entropy"))
        threshold = self.target_threshold
        require(
            threshold is None or (0 <= threshold < 1 and self.loss == "binary_cross_entropy"),
            "train.target_threshold",
            threshold,
            "in [0, 1) with train.loss=binary_cross_entropy, or null",
        )
        require(
            0 <= self.label_smoothing < 1,
            "train.label_smoothing",
            self.label_smoothing,
            "in [0, 1)",
        )


@dataclass
class TrackingConfig:
    tensorboard: bool = True
    # Steps between two lines of metrics.jsonl and TensorBoard.
    log_every: int = 50
    # Steps between two histograms of λ, γ and β in TensorBoard; null for none.
    histograms_every: int | None = None
    # Where the curves go besides: wandb or mlflow, through their own libraries.
    service: str | None = None

    def __post_init__(self) -> None:
        require(self.log_every >= 1, "tracking.log_every", self.log_every, "at least 1")
        every = self.histograms_every
        valid = every is None or (every >= 1 and self.tensorboard)
        wanted = "at least 1 with tracking.tensorboard=true, or null"
        require(valid, "tracking.histograms_every", every, wanted)
        if self.service is not None:
            require_choice("tracking.service", self.service, ("wandb", "mlflow"))


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
            require(value is None or value > 0, f"checkpoint.{key}", value, "positive or null")
        for key in ("keep_last", "keep_best"):
            value = getattr(self, key)
            require(value >= 1, f"checkpoint.{key}", value, "at least 1")


@dataclass
class EmaConfig:
    """A moving average of the weights, evaluated beside them; null for none."""

    decay: float | None = None
    # Steps from one update to the next; decay is that of an update.
    every: int = 1
    # Follow fast at first: the decay of update t is at most 1 - (1 + t)^(-2/3).
    warmup: bool = False

    def __post_init__(self) -> None:
        require(self.every >= 1, "ema.every", self.every, "at least 1")
        valid = self.decay is None or 0 < self.decay < 1
        require(valid, "ema.decay", self.decay, "between 0 and 1, or null for no average")


@dataclass
class Config:
    """One training run, whole."""

    name: str = MISSING
    # That the settings began with; filled in from recipe=.
    recipe_name: str | None = None
    task: TaskConfig = field(default_factory=TaskConfig)
    arch: ArchConfig = MISSING
    # What stands on the backbone, for task=detection alone.
    detector: DetectorConfig | None = None
    # Weights that a detector's backbone begins with: a checkpoint of a classification run, a .pth
    # or .safetensors file, or "timm", its own.
    weights: str | None = None
    norm: NormConfig = MISSING
    data: DataConfig = MISSING
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loader: LoaderConfig = MISSING
    optim: OptimConfig = MISSING
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
    # Of torch.compile; reduce-overhead and max-autotune record CUDA graphs and replay them.
    compile_mode: str = "default"
    # Trace a few steps into the run folder's profile/.
    profile: bool = False
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
        require(bool(self.name), "name", repr(self.name), "a folder name")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(
            self.grad_accumulation >= 1, "grad_accumulation", self.grad_accumulation, "at least 1"
        )
        require_choice("device", self.device, ("auto", "cpu", "cuda", "mps"))
        require_choice("precision", self.precision, ("auto", "fp32", "tf32", "fp16", "bf16"))
        require_choice("compile_mode", self.compile_mode, COMPILE_MODES)
        require(
            self.compile or self.compile_mode == "default",
            "compile_mode",
            self.compile_mode,
            "default unless compile=true",
        )
        require(
            self.compile_mode not in GRAPH_MODES or self.grad_accumulation == 1,
            "grad_accumulation",
            self.grad_accumulation,
            f"1 with compile_mode={self.compile_mode}: a CUDA graph's gradients live in its own"
            " memory, and cannot be added to",
        )
        require_choice("resume", self.resume, ("auto", "never"))
        require_choice("on_nonfinite", self.on_nonfinite, ("stop", "rewind"))
        require(self.max_rewinds >= 1, "max_rewinds", self.max_rewinds, "at least 1")
        require(
            self.max_skipped_steps >= 1, "max_skipped_steps", self.max_skipped_steps, "at least 1"
        )
        require(self.timeout_minutes > 0, "timeout_minutes", self.timeout_minutes, "positive")
        require(
            not (self.compile and self.tracking.histograms_every is not None),
            "tracking.histograms_every",
            self.tracking.histograms_every,
            "null with compile=true, which does not let it look into the model",
        )
        for key in ("compile", "deterministic"):
            require(
                not (self.device == "mps" and getattr(self, key)),
                key,
                True,
                "false with device=mps, for which torch does not promise it",
            )
        require(
            (self.detector is not None) or self.weights is None,
            "weights",
            self.weights,
            "null without a detector: a classifier begins with arch.pretrained",
        )
        require(
            not self.augment.mixes or self.batch_size % 2 == 0,
            "batch_size",
            self.batch_size,
            "even with augment.mixup or augment.cutmix: images are mixed in pairs",
        )
        require(
            self.schedule.warmup_epochs < self.epochs,
            "schedule.warmup_epochs",
            self.schedule.warmup_epochs,
            f"less than epochs={self.epochs}",
        )
