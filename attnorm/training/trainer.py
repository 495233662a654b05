"""The paper's training recipe: epochs of steps, an evaluation and a checkpoint after each."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnorm import config as schema
from attnorm import distributed
from attnorm.distributed import Process
from attnorm.errors import UserError, is_unwritable
from attnorm.files import to_json, write_text
from attnorm.tracking import Tracker
from attnorm.training import optim, provenance, records
from attnorm.training.advice import loader_advice
from attnorm.training.checkpoints import CheckpointManager
from attnorm.training.ema import average_of
from attnorm.training.interrupts import Interrupts, RunInterrupted
from attnorm.training.meter import Interval, peak_memory_mib
from attnorm.training.precision import resolve_precision
from attnorm.training.profiling import StepProfiler
from attnorm.training.recovery import Recovery
from attnorm.training.schedule import learning_rate
from attnorm.training.state import TrainState
from attnorm.training.step import TrainingStep
from attnorm.training.task import BatchLoader, Metrics, Score, Task

logger = logging.getLogger(__name__)

# What a process may ask of all others between two steps (bits of distributed.agree).
SAVE, STOP, WRITE_FAILED = 1, 2, 4

# Data orders of a rewound run are those of epochs that no run reaches.
EPOCHS_PER_REWIND = 1_000_000


class Trainer:
    """Trains one model. What changes meanwhile is ``state``, which can be saved at any step."""

    def __init__(
        self,
        config: schema.Config,
        task: Task,
        model: nn.Module,
        train_loader: BatchLoader,
        val_loader: BatchLoader,
        process: Process,
        run_dir: Path,
    ) -> None:
        self.config, self.task, self.process, self.run_dir = config, task, process, run_dir
        self.train_loader, self.val_loader = train_loader, val_loader
        self.precision = resolve_precision(config.precision, process.device)
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        model = model.to(process.device).to(memory_format=memory_format)
        self.state = TrainState(
            task,
            model,
            optim.build_optimizer(model, config.optim),
            self.precision.scaler(),
            average_of(model, config.ema),
            process,
            optim.steps_per_epoch(len(train_loader), config),
        )
        self.train_step = TrainingStep(config, task, self.state, self.precision)
        self.interrupts = Interrupts()
        self.checkpoints = CheckpointManager(
            run_dir,
            enabled=process.is_main,
            keep_last=config.checkpoint.keep_last,
            keep_best=config.checkpoint.keep_best,
        )
        self.recovery = Recovery(config, self.state, self.checkpoints, run_dir)
        self.global_batch = config.batch_size * process.world_size * config.grad_accumulation
        self.total_steps = config.epochs * self.state.steps_per_epoch
        self.base_lr = optim.base_learning_rate(config.optim, self.global_batch)
        self.profiler = StepProfiler(run_dir / "profile", process.rank, enabled=config.profile)
        self._intervals: list[Interval] = []  # of the present epoch
        self._advised = False
        self._saved_at = time.monotonic()

    # ------------------------------------------------------------------ the recipe

    def fit(self, tracker: Tracker) -> dict[str, Any]:
        """Train to the last epoch and return what ``result.json`` holds.

        Raises:
            RunInterrupted: a signal asked to stop; the checkpoint is on the disk.
            UserError: the loss is not finite, or the run folder cannot be written.
        """
        try:
            return self._fit(tracker)
        except OSError as error:
            if is_unwritable(error) or self.run_dir.as_posix() in str(error.filename):
                raise self.checkpoints.not_written(error) from error
            raise

    def _fit(self, tracker: Tracker) -> dict[str, Any]:
        tracker.start(self.config.epochs)
        try:
            with self.interrupts:
                while self.state.epoch < self.config.epochs:
                    self.train_epoch(tracker)
                    self.evaluate_and_save(tracker)
                self.checkpoints.finish()
        finally:
            self.profiler.close()
            tracker.close()
        return self.write_result()

    def train_epoch(self, tracker: Tracker) -> None:
        """One pass over the training set, or what is left of it."""
        state, total = self.state, self.state.steps_per_epoch
        if state.step_in_epoch == 0:
            # Processes draw differently: dropout masks, the boxes that a detector samples.
            own = self.process.rank * 7_368_787
            torch.manual_seed(self.config.seed * 1_000_003 + state.epoch + own)
        self.train_step.replica.train()
        state.meter.restart_clock()
        batches = self._batches()
        self._intervals.clear()
        while state.step_in_epoch < total:
            done = state.step_in_epoch + 1
            is_logged = done % self.config.tracking.log_every == 0 or done == total
            lr = learning_rate(
                self.config.schedule, self.base_lr, state.step, self.total_steps, total
            )
            optim.set_learning_rate(state.optimizer, lr)
            grad_norm = self.train_step(batches, measure_gradient=is_logged)
            state.step_in_epoch = done
            if is_logged and not self.log_interval(tracker, lr, grad_norm):
                batches = self._batches()  # it went back to a checkpoint
            tracker.progress(state.epoch + 1, self.config.epochs, state.step_in_epoch, total)
            self.profiler.step()
            self.between_steps(tracker)
        if not self._advised:
            self._advise()

    def _batches(self) -> Iterator[Any]:
        """The rest of the epoch that the state is in."""
        order = self.state.epoch + self.state.rewinds * EPOCHS_PER_REWIND
        first_batch = self.state.step_in_epoch * self.config.grad_accumulation
        return self.train_loader.epoch(order, first_batch)

    def evaluate_and_save(self, tracker: Tracker) -> None:
        """The end of an epoch: metrics on the validation set, then a checkpoint."""
        state = self.state
        evaluation = self._evaluate(state.model)
        averaged = None if state.average is None else self._evaluate(state.average.model)
        step = state.step
        state.finish_epoch()
        metrics = records.with_average(evaluation, averaged)
        state.scores.append(Score(state.epoch, step, metrics))
        tracker.record("eval", step, {"epoch": state.epoch, **metrics})
        for tag, picture in self.task.pictures().items():
            tracker.picture(tag, picture, step)
        self.save()
        self.write_result()
        line = records.score_line(self.task, state.scores)
        logger.info("epoch %d/%d  %s", state.epoch, self.config.epochs, line)

    def _evaluate(self, model: nn.Module) -> Metrics:
        distributed.broadcast_buffers(model)
        if self.config.compile:  # evaluation is rare, and would compile for batches of its own
            with torch.compiler.set_stance("force_eager"):
                return self.task.evaluate(
                    model, self.val_loader, self.precision, self.process.device
                )
        return self.task.evaluate(model, self.val_loader, self.precision, self.process.device)

    # ------------------------------------------------------------------ between steps

    def between_steps(self, tracker: Tracker) -> None:
        """Save or stop where any process asks for it."""
        request = STOP if self.interrupts.received else 0
        if self.process.is_main and self._checkpoint_is_due():
            request |= SAVE
        if self.checkpoints.failed():
            request |= WRITE_FAILED
        request = distributed.agree(request)
        if request & WRITE_FAILED:
            self.checkpoints.finish()
            raise UserError("Rank 0 cannot write its checkpoint: see its message.")
        if request & (SAVE | STOP):
            self.save()
        if request & STOP:
            self.checkpoints.finish()
            signal = self.interrupts.received or "another process"
            tracker.record("event", self.state.step, {"event": "interrupted", "signal": signal})
            raise RunInterrupted(signal)

    def _checkpoint_is_due(self) -> bool:
        settings = self.config.checkpoint
        if settings.every_steps is not None and self.state.step % settings.every_steps == 0:
            return True
        minutes = (time.monotonic() - self._saved_at) / 60
        return settings.every_minutes is not None and minutes >= settings.every_minutes

    def save(self) -> None:
        """Checkpoint the present state. Collective; the writing goes on in the background.

        Weights that are not finite never replace a good checkpoint: the next loss will tell.
        """
        self._saved_at = time.monotonic()
        parameters = [parameter.detach() for parameter in self.state.model.parameters()]
        if not nn.utils.get_total_norm(parameters).isfinite():
            logger.warning("Step %d: the weights are not finite and not saved.", self.state.step)
            return
        content = {
            **self.state.state_dict(),
            "config": schema.to_container(self.config),
            **self.task.stored(),
            "global_batch": self.global_batch,
            "versions": provenance.versions(),
        }
        scores = [score.rank(self.task) for score in self.state.scores]
        self.checkpoints.save(content, self.state.step, scores)

    def resume(self, stored: dict[str, Any], path: Path) -> None:
        """Go on from a checkpoint of the same run, all processes from the same step. Collective.

        Raises:
            UserError: the checkpoint is of another model or another global batch.
            RuntimeError: the processes are not at the same step, which would be a fault of ours.
        """
        if stored["global_batch"] != self.global_batch:
            raise UserError(
                f"{path} was trained with {stored['global_batch']} images a step, this launch has"
                f" {self.global_batch} (batch_size × processes × grad_accumulation): launch as"
                " before, or choose another name."
            )
        self.state.load_state_dict(stored, path)
        self.state.restarts += 1
        places = distributed.gather_objects((self.state.epoch, self.state.step_in_epoch))
        if len(set(places)) > 1:
            raise RuntimeError(f"the processes continue at different (epoch, step): {places}")

    # ------------------------------------------------------------------ watching

    def log_interval(self, tracker: Tracker, lr: float, grad_norm: Tensor | None) -> bool:
        """Read the meter and record the interval; False where the run went back to a checkpoint."""
        state, config = self.state, self.config
        interval = state.meter.read()
        if self.recovery.is_needed(interval):
            self.recovery.go_back(tracker, interval, lr)
            self.save()  # a process that takes over must not repeat the old order
            return False
        self._intervals.append(interval)
        remaining = (self.total_steps - state.step) * self.global_batch
        values = {
            "epoch": state.epoch + 1,
            "epochs": config.epochs,
            "step_in_epoch": state.step_in_epoch,
            "steps_per_epoch": state.steps_per_epoch,
            "loss": interval.loss,
            **self.task.train_values(interval.means),
            "lr": lr,
            **records.speeds(interval),
            "peak_memory_mib": peak_memory_mib(self.process.device),
            "grad_norm": None if grad_norm is None else float(grad_norm),
            "scaler_scale": state.scaler.get_scale() if state.scaler.is_enabled() else None,
            "skipped_steps": interval.skipped_steps if state.scaler.is_enabled() else None,
            "skipped_images": self.train_loader.skipped,
            "eta_seconds": remaining / interval.images_per_second,
        }
        tracker.train(
            state.step,
            values,
            status=records.status(self.task, values),
            line=records.train_line(self.task, values),
        )
        return True

    def _advise(self) -> None:
        """Once in a launch: say so if the loader is what limits it."""
        self._advised = True
        remedies = self.train_loader.remedies(distributed.cores_per_process())
        line = loader_advice(self._intervals, remedies)
        if line is not None:
            logger.warning("%s", line)

    def write_result(self) -> dict[str, Any]:
        """The run's outcome so far, for machines: ``result.json``, written by rank 0."""
        state = self.state
        result = {
            "status": "finished" if state.epoch == self.config.epochs else "running",
            "best": state.best.flat() if state.best else None,
            "final": state.last.flat() if state.last else None,
            "parameters": sum(p.numel() for p in state.model.parameters()),
            "epochs": state.epoch,
            "images_seen": state.step * self.global_batch,
            "wall_seconds": round(state.wall_seconds, 1),
            "restarts": state.restarts,
            "rewinds": state.rewinds,
            "skipped_images": self.train_loader.skipped,
            "seed": self.config.seed,
            "config_hash": provenance.config_hash(schema.to_container(self.config)),
            "git_commit": provenance.git_commit(),
            "versions": provenance.versions(),
            "hardware": provenance.hardware(self.process),
            "data": self.task.fingerprint() if self.process.is_main else {},
        }
        if self.process.is_main:
            write_text(self.run_dir / "result.json", to_json(result))
        return result
