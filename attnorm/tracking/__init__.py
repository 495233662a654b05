"""What a person sees of a run: bar, log files, and the sinks that its numbers go to."""

from attnorm.tracking.console import setup_logging
from attnorm.tracking.sink import Sink
from attnorm.tracking.tracker import Tracker, open_tracker
from attnorm.tracking.wandb_mlflow import check_service

__all__ = ["Sink", "Tracker", "check_service", "open_tracker", "setup_logging"]
