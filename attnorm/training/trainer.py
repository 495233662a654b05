"""The paper's training recipe: epochs of steps, an evaluation and a checkpoint after each."""

from __future__ import annotations

import logging
import math
import platform
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attnorm import config as schema
from attnorm import distributed
from attnorm.distributed import Process
from attnorm.errors import UserError
from attnorm.tracking import Tracker, write_json
from attnorm.training import checkpoint, optim
from attnorm.training.evaluator import BatchLoader, Evaluation, evaluate
from attnorm.training.meter import TrainMeter, peak_memory_mib
from attnorm.training.precision import resolve_precision

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """An evaluation and the epoch (counted from 1) after which it was made."""

    epoch: int
    top1_error: float
    top5_error: float | None
    loss: float

    @classmethod
    def of(cls, epoch: int, evaluation: Evaluation) -> Score:
        return cls(epoch, evaluation.top1_error, evaluation.top5_error, evaluation.loss)


class Trainer:
    """Trains one model. Its whole state is ``state_dict()``."""

    def __init__(
        self,
        config: schema.Config,
        model: nn.Module,
        train_loader: BatchLoader,
        val_loader: BatchLoader,
        class_names: Sequence[str],
        process: Process,
        run_dir: Path,
    ) -> None:
        self.config, self.process, self.run_dir = config, process, run_dir
        self.train_loader, self.val_loader = train_loader, val_loader
        self.class_names = list(class_names)
        self.precision = resolve_precision(config.precision, process.device)
        self.scaler = self.precision.scaler()
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = model.to(process.device).to(memory_format=memory_format)
        self.optimizer = optim.build_optimizer(self.model, config.optim)
        self.replica = self._replicate()
        self.criterion = nn.CrossEntropyLoss(label_smoothing=config.train.label_smoothing)

        self.global_batch = config.batch_size * process.world_size * config.grad_accumulation
        self.steps_per_epoch = optim.steps_per_epoch(len(train_loader), config)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.base_lr = optim.base_learning_rate(config.optim, self.global_batch)
        self.epoch = 0  # epochs completed
        self.best: Score | None = None
        self.last: Score | None = None

    def _replicate(self) -> nn.Module:
        """The model as the step calls it: compiled and, with several processes, wrapped in DDP."""
        model = self.model
        if self.config.compile:
            model.compile()
        if self.process.world_size == 1:
            return model
        return DistributedDataParallel(
            model,
            device_ids=[self.process.device] if self.process.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,  # see distributed.broadcast_buffers
        )

    # ------------------------------------------------------------------ the recipe

    def fit(self, tracker: Tracker) -> dict[str, Any]:
        """Train to the last epoch and return what ``result.json`` holds."""
        tracker.start(self.config.epochs)
        try:
            while self.epoch < self.config.epochs:
                torch.manual_seed(self.config.seed * 1_000_003 + self.epoch)
                self.train_epoch(tracker)
                self.epoch += 1
                self.evaluate_and_save(tracker)
        finally:
            tracker.close()
        return self.result()

    def train_epoch(self, tracker: Tracker) -> None:
        """One pass over the training set."""
        self.replica.train()
        meter = TrainMeter(self.process.device)
        batches = self.train_loader.epoch(self.epoch)
        for step_in_epoch in range(self.steps_per_epoch):
            step = self.epoch * self.steps_per_epoch + step_in_epoch
            done = step_in_epoch + 1
            is_logged = done % self.config.tracking.log_every == 0 or done == self.steps_per_epoch
            lr = optim.learning_rate(
                self.config.schedule, self.base_lr, step, self.total_steps, self.steps_per_epoch
            )
            optim.set_learning_rate(self.optimizer, lr)
            grad_norm = self.train_step(batches, meter, step, measure_gradient=is_logged)
            if is_logged:
                self.log_interval(tracker, meter, step, lr, grad_norm)
            tracker.progress(self.epoch + 1, self.config.epochs, done, self.steps_per_epoch)

    def train_step(
        self, batches: Any, meter: TrainMeter, step: int, measure_gradient: bool
    ) -> Tensor | None:
        """One optimizer step from ``grad_accumulation`` micro-batches."""
        accumulation = self.config.grad_accumulation
        for micro in range(accumulation):
            waiting_since = time.perf_counter()
            images, labels = next(batches)
            meter.waiting_seconds += time.perf_counter() - waiting_since
            with self._no_sync() if micro + 1 < accumulation else nullcontext():
                with self.precision.autocast():
                    logits = self.replica(images)
                    loss = self.criterion(logits, labels)
                self.scaler.scale(loss / accumulation).backward()
            meter.update(loss, logits, labels, step)
        grad_norm = None
        if measure_gradient:
            self.scaler.unscale_(self.optimizer)
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            grad_norm = nn.utils.get_total_norm(grads)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm

    def _no_sync(self) -> Any:
        """Leave gradients unreduced until the last micro-batch."""
        if isinstance(self.replica, DistributedDataParallel):
            return self.replica.no_sync()
        return nullcontext()

    def evaluate_and_save(self, tracker: Tracker) -> None:
        """The end of an epoch: errors on the validation set, ``last.pt`` and ``best.pt``."""
        distributed.broadcast_buffers(self.model)
        evaluation = evaluate(self.model, self.val_loader, self.precision, self.process.device)
        self.last = Score.of(self.epoch, evaluation)
        is_best = self.best is None or self.last.top1_error < self.best.top1_error
        if is_best:
            self.best = self.last
        state = self.state_dict()
        if self.process.is_main:
            checkpoint.save_checkpoint(state, self.run_dir / "last.pt")
            if is_best:
                checkpoint.link_checkpoint(self.run_dir / "last.pt", self.run_dir / "best.pt")
            write_json(self.run_dir / "result.json", self.result())
        tracker.record("eval", self.step, {"epoch": self.epoch, **asdict(evaluation)})
        logger.info(
            "epoch %d/%d  val loss %.4f  top-1 error %.2f %%  top-5 error %s  (best top-1 error"
            " %.2f %% after epoch %d)",
            self.epoch,
            self.config.epochs,
            evaluation.loss,
            evaluation.top1_error,
            "n/a" if evaluation.top5_error is None else f"{evaluation.top5_error:.2f} %",
            self.best.top1_error if self.best else math.nan,
            self.best.epoch if self.best else 0,
        )

    # ------------------------------------------------------------------ watching

    def log_interval(
        self, tracker: Tracker, meter: TrainMeter, step: int, lr: float, grad_norm: Tensor | None
    ) -> None:
        """Read the meter, refuse numbers that are not finite, and record the interval."""
        interval = meter.read()
        if interval.first_bad_step is not None and not self.scaler.is_enabled():
            self._stop_on_nonfinite(tracker, interval.first_bad_step, lr)
        remaining = (self.total_steps - step - 1) * self.global_batch
        values = {
            "epoch": self.epoch + 1,
            "epochs": self.config.epochs,
            "step_in_epoch": step % self.steps_per_epoch + 1,
            "steps_per_epoch": self.steps_per_epoch,
            "loss": interval.loss,
            "top1_error": interval.top1_error,
            "lr": lr,
            "images_per_second": interval.images_per_second,
            "data_wait": interval.data_wait,
            "peak_memory_mib": peak_memory_mib(self.process.device),
            "grad_norm": None if grad_norm is None else float(grad_norm),
            "scaler_scale": self.scaler.get_scale() if self.scaler.is_enabled() else None,
            "eta_seconds": remaining / interval.images_per_second,
        }
        tracker.train(step + 1, values)

    def _stop_on_nonfinite(self, tracker: Tracker, step: int, lr: float) -> None:
        tracker.record("event", step, {"event": "nonfinite_loss", "lr": lr})
        last_good = self.run_dir / "last.pt"
        where = f"the last good checkpoint is {last_good}" if self.epoch else "no checkpoint yet"
        raise UserError(
            f"The loss is not finite since step {step} (epoch {self.epoch + 1},"
            f" optim.lr={self.config.optim.lr}, lr {lr:.4g}); {where}.\n"
            "Lower optim.lr, add schedule.warmup_epochs, or look for broken images."
        )

    # ------------------------------------------------------------------ state

    @property
    def step(self) -> int:
        """Optimizer steps in the completed epochs."""
        return self.epoch * self.steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """Everything that a continued run needs, as tensors and plain containers. Collective."""
        random = {"cpu": torch.get_rng_state()}
        if self.process.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.process.device)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": asdict(self.best) if self.best else None,
            "last": asdict(self.last) if self.last else None,
            "random": distributed.gather_objects(random),
            "config": schema.to_container(self.config),
            "class_names": self.class_names,
            "global_batch": self.global_batch,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__.split("+")[0],
                "timm": timm.__version__,
            },
        }

    def load_state_dict(self, state: dict[str, Any], path: Path) -> None:
        """Go on from a checkpoint of the same run.

        Raises:
            UserError: the checkpoint is of another model or another global batch.
        """
        if state["global_batch"] != self.global_batch:
            raise UserError(
                f"{path} was trained with {state['global_batch']} images a step, this launch has"
                f" {self.global_batch} (batch_size × processes × grad_accumulation): launch as"
                " before, or choose another name."
            )
        checkpoint.load_weights(self.model, state, path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch = state["epoch"]
        self.best = Score(**state["best"]) if state["best"] else None
        self.last = Score(**state["last"]) if state["last"] else None
        if self.process.rank < len(state["random"]):
            random = state["random"][self.process.rank]
            torch.set_rng_state(random["cpu"].cpu())
            if "cuda" in random and self.process.device.type == "cuda":
                torch.cuda.set_rng_state(random["cuda"].cpu(), self.process.device)

    def result(self) -> dict[str, Any]:
        """The run's outcome so far, for machines."""
        return {
            "status": "finished" if self.epoch == self.config.epochs else "running",
            "best": asdict(self.best) if self.best else None,
            "final": asdict(self.last) if self.last else None,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "epochs": self.epoch,
            "seed": self.config.seed,
        }
