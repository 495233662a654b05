"""The paper's training recipe: epochs of steps, an evaluation and a checkpoint after each."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attnorm import config as schema
from attnorm import distributed
from attnorm.distributed import Process
from attnorm.errors import UserError
from attnorm.tracking import Tracker, write_json
from attnorm.training import checkpoint, optim, provenance
from attnorm.training.evaluator import BatchLoader, Score, evaluate
from attnorm.training.interrupts import Interrupts, RunInterrupted
from attnorm.training.keeper import CheckpointKeeper
from attnorm.training.meter import TrainMeter, peak_memory_mib
from attnorm.training.precision import resolve_precision

logger = logging.getLogger(__name__)

# What a process may ask of all others between two steps (bits of distributed.agree).
SAVE, STOP, WRITE_FAILED = 1, 2, 4


class Trainer:
    """Trains one model. Its whole state is ``state_dict()``, at any step."""

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
        self.meter = TrainMeter(process.device)
        self.interrupts = Interrupts()
        self.keeper = CheckpointKeeper(
            run_dir,
            enabled=process.is_main,
            keep_last=config.checkpoint.keep_last,
            keep_best=config.checkpoint.keep_best,
        )

        self.global_batch = config.batch_size * process.world_size * config.grad_accumulation
        self.steps_per_epoch = optim.steps_per_epoch(len(train_loader), config)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.base_lr = optim.base_learning_rate(config.optim, self.global_batch)
        self.epoch = 0  # epochs completed, evaluation included
        self.step_in_epoch = 0  # steps completed of the epoch that goes on
        self.scores: list[Score] = []
        self.restarts = 0
        self.wall_seconds = 0.0  # of training before this process took over
        self._started = self._saved_at = time.monotonic()

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
        """Train to the last epoch and return what ``result.json`` holds.

        Raises:
            RunInterrupted: a signal asked to stop; the checkpoint is on the disk.
            UserError: the loss is not finite, or a checkpoint cannot be written.
        """
        tracker.start(self.config.epochs)
        try:
            with self.interrupts:
                while self.epoch < self.config.epochs:
                    self.train_epoch(tracker)
                    self.evaluate_and_save(tracker)
                self.keeper.finish()
        finally:
            tracker.close()
        result = self.result()
        if self.process.is_main:
            write_json(self.run_dir / "result.json", result)
        return result

    def train_epoch(self, tracker: Tracker) -> None:
        """One pass over the training set, or what is left of it."""
        if self.step_in_epoch == 0:
            torch.manual_seed(self.config.seed * 1_000_003 + self.epoch)
        self.replica.train()
        self.meter.restart_clock()
        first_batch = self.step_in_epoch * self.config.grad_accumulation
        batches = self.train_loader.epoch(self.epoch, first_batch)
        while self.step_in_epoch < self.steps_per_epoch:
            done = self.step_in_epoch + 1
            is_logged = done % self.config.tracking.log_every == 0 or done == self.steps_per_epoch
            lr = optim.learning_rate(
                self.config.schedule,
                self.base_lr,
                self.step,
                self.total_steps,
                self.steps_per_epoch,
            )
            optim.set_learning_rate(self.optimizer, lr)
            grad_norm = self.train_step(batches, measure_gradient=is_logged)
            self.step_in_epoch = done
            if is_logged:
                self.log_interval(tracker, lr, grad_norm)
            tracker.progress(self.epoch + 1, self.config.epochs, done, self.steps_per_epoch)
            self.between_steps(tracker)

    def train_step(
        self, batches: Iterator[tuple[Tensor, Tensor]], measure_gradient: bool
    ) -> Tensor | None:
        """One optimizer step from ``grad_accumulation`` micro-batches."""
        accumulation = self.config.grad_accumulation
        for micro in range(accumulation):
            waiting_since = time.perf_counter()
            images, labels = next(batches)
            self.meter.waiting_seconds += time.perf_counter() - waiting_since
            with self._no_sync() if micro + 1 < accumulation else nullcontext():
                with self.precision.autocast():
                    logits = self.replica(images)
                    loss = self.criterion(logits, labels)
                self.scaler.scale(loss / accumulation).backward()
            self.meter.update(loss, logits, labels, self.step)
        grad_norm = None
        if measure_gradient:
            self.scaler.unscale_(self.optimizer)
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            grad_norm = nn.utils.get_total_norm(grads)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm

    def _no_sync(self) -> AbstractContextManager[None]:
        """Leave gradients unreduced until the last micro-batch."""
        if isinstance(self.replica, DistributedDataParallel):
            return self.replica.no_sync()
        return nullcontext()

    def evaluate_and_save(self, tracker: Tracker) -> None:
        """The end of an epoch: errors on the validation set, then a checkpoint."""
        distributed.broadcast_buffers(self.model)
        evaluation = evaluate(self.model, self.val_loader, self.precision, self.process.device)
        step = self.step
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self.scores.append(Score.of(self.epoch, step, evaluation))
        tracker.record("eval", step, {"epoch": self.epoch, **asdict(evaluation)})
        self.save()
        if self.process.is_main:
            write_json(self.run_dir / "result.json", self.result())
        best = self.best
        logger.info(
            "epoch %d/%d  val loss %.4f  top-1 error %.2f %%  top-5 error %s  (best top-1 error"
            " %.2f %% after epoch %d)",
            self.epoch,
            self.config.epochs,
            evaluation.loss,
            evaluation.top1_error,
            "n/a" if evaluation.top5_error is None else f"{evaluation.top5_error:.2f} %",
            best.top1_error if best else math.nan,
            best.epoch if best else 0,
        )

    # ------------------------------------------------------------------ between steps

    def between_steps(self, tracker: Tracker) -> None:
        """Save or stop where any process asks for it."""
        request = STOP if self.interrupts.received else 0
        if self.process.is_main and self._checkpoint_is_due():
            request |= SAVE
        if self.keeper.failed():
            request |= WRITE_FAILED
        request = distributed.agree(request)
        if request & WRITE_FAILED:
            self.keeper.finish()
            raise UserError("Rank 0 cannot write its checkpoint: see its message.")
        if request & (SAVE | STOP):
            self.save()
        if request & STOP:
            self.keeper.finish()
            signal = self.interrupts.received or "another process"
            tracker.record("event", self.step, {"event": "interrupted", "signal": signal})
            raise RunInterrupted(signal)

    def _checkpoint_is_due(self) -> bool:
        settings = self.config.checkpoint
        if settings.every_steps is not None and self.step % settings.every_steps == 0:
            return True
        minutes = (time.monotonic() - self._saved_at) / 60
        return settings.every_minutes is not None and minutes >= settings.every_minutes

    def save(self) -> None:
        """Checkpoint the present state. Collective; the writing goes on in the background."""
        self._saved_at = time.monotonic()
        scores = [(score.top1_error, score.step) for score in self.scores]
        self.keeper.save(self.state_dict(), self.step, scores)

    def log_interval(self, tracker: Tracker, lr: float, grad_norm: Tensor | None) -> None:
        """Read the meter, refuse numbers that are not finite, and record the interval."""
        interval = self.meter.read()
        if interval.first_bad_step is not None and not self.scaler.is_enabled():
            self._stop_on_nonfinite(tracker, interval.first_bad_step, lr)
        remaining = (self.total_steps - self.step) * self.global_batch
        values = {
            "epoch": self.epoch + 1,
            "epochs": self.config.epochs,
            "step_in_epoch": self.step_in_epoch,
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
        tracker.train(self.step, values)

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
        """Optimizer steps so far."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    @property
    def best(self) -> Score | None:
        """The evaluation with the lowest top-1 error, the earliest of equals."""
        return min(self.scores, key=lambda score: (score.top1_error, score.step), default=None)

    @property
    def last(self) -> Score | None:
        """The newest evaluation."""
        return self.scores[-1] if self.scores else None

    def state_dict(self) -> dict[str, Any]:
        """Everything that a continued run needs, as tensors and plain containers. Collective."""
        own: dict[str, Any] = {"random": torch.get_rng_state(), "meter": self.meter.state_dict()}
        if self.process.device.type == "cuda":
            own["random_cuda"] = torch.cuda.get_rng_state(self.process.device)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "step": self.step,
            "scores": [asdict(score) for score in self.scores],
            "processes": distributed.gather_objects(own),
            "restarts": self.restarts,
            "wall_seconds": self._wall_seconds(),
            "config": schema.to_container(self.config),
            "class_names": self.class_names,
            "global_batch": self.global_batch,
            "versions": provenance.versions(),
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
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
        self.scores = [Score(**score) for score in state["scores"]]
        self.restarts = state["restarts"] + 1
        self.wall_seconds = state["wall_seconds"]
        if self.process.rank < len(state["processes"]):
            own = state["processes"][self.process.rank]
            self.meter.load_state_dict(own["meter"])
            torch.set_rng_state(own["random"])
            if "random_cuda" in own and self.process.device.type == "cuda":
                torch.cuda.set_rng_state(own["random_cuda"], self.process.device)

    def _wall_seconds(self) -> float:
        return self.wall_seconds + time.monotonic() - self._started

    def result(self) -> dict[str, Any]:
        """The run's outcome so far, for machines."""
        return {
            "status": "finished" if self.epoch == self.config.epochs else "running",
            "best": asdict(self.best) if self.best else None,
            "final": asdict(self.last) if self.last else None,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "epochs": self.epoch,
            "images_seen": self.step * self.global_batch,
            "wall_seconds": round(self._wall_seconds(), 1),
            "restarts": self.restarts,
            "skipped_images": getattr(self.train_loader, "skipped", 0),
            "seed": self.config.seed,
            "config_hash": provenance.config_hash(schema.to_container(self.config)),
            "git_commit": provenance.git_commit(),
            "versions": provenance.versions(),
        }
