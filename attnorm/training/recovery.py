"""What happens when the loss is no longer finite: stop and say where, or go back and try again."""

from __future__ import annotations

import logging
from pathlib import Path

from attnorm import distributed
from attnorm.config import Config
from attnorm.errors import UserError
from attnorm.tracking import Tracker
from attnorm.training.checkpoints import CheckpointManager, load_newest
from attnorm.training.meter import Interval
from attnorm.training.state import TrainState

logger = logging.getLogger(__name__)


class Recovery:
    """Judges every interval; ``on_nonfinite`` says what a bad one leads to."""

    def __init__(
        self, config: Config, state: TrainState, checkpoints: CheckpointManager, run_dir: Path
    ) -> None:
        self._config, self._state = config, state
        self._checkpoints, self._run_dir = checkpoints, run_dir

    def is_needed(self, interval: Interval) -> bool:
        """Whether the loss was not finite, or fp16 overflowed more often than a scaler explains."""
        if self._state.scaler.is_enabled():  # single overflows are the scaler's business
            return interval.skipped_in_a_row >= self._config.max_skipped_steps
        return interval.first_bad_step is not None

    def go_back(self, tracker: Tracker, interval: Interval, lr: float) -> None:
        """Put the state back to the last checkpoint with another data order to come. Collective.

        Raises:
            UserError: that is not wanted, was tried often enough, or there is no checkpoint.
        """
        state, config = self._state, self._config
        step = state.step if interval.first_bad_step is None else interval.first_bad_step
        tracker.record("event", step, {"event": "nonfinite_loss", "lr": lr})
        self._checkpoints.finish()
        distributed.barrier()  # rank 0's newest checkpoint is on the disk
        newest, _ = load_newest(self._run_dir)
        if config.on_nonfinite == "rewind" and newest and state.rewinds < config.max_rewinds:
            path, stored = newest
            rewinds = state.rewinds + 1
            state.load_state_dict(stored, path)
            state.rewinds = rewinds
            tracker.rewind(state.step, state.epoch)
            tracker.record("event", state.step, {"event": "rewound", "from_step": step})
            logger.warning("Loss not finite at step %d: back to step %d.", step, state.step)
            return
        where = f"the last good checkpoint is {newest[0]}" if newest else "there is no checkpoint"
        tried = f" after {state.rewinds} rewinds" if state.rewinds else ""
        raise UserError(
            f"The loss is not finite since step {step}{tried} (epoch {state.epoch + 1},"
            f" optim.lr={config.optim.lr}, lr {lr:.4g}); {where}.\n"
            "Lower optim.lr, add schedule.warmup_epochs, look for broken images, or let"
            " on_nonfinite=rewind try again with another order of the data."
        )
