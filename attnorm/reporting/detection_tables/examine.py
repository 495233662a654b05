"""Best checkpoints evaluated in detail, once: what ``details`` reads is written here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from PIL import Image

from attnorm.detection.evaluation import evaluate_predictions, predict
from attnorm.detection.loader import DetectionLoader
from attnorm.detection.pictures import found_and_missed
from attnorm.detection.task import Detection
from attnorm.errors import UserError
from attnorm.files import write_json
from attnorm.reporting.detection_tables import details
from attnorm.reporting.detection_tables.table import Result
from attnorm.reporting.runs import Run
from attnorm.run.trained import load_trained

logger = logging.getLogger(__name__)
SHOWN = 6  # pictures of a run


def evaluate_missing(results: Sequence[Result], overrides: Sequence[str] = ()) -> None:
    """Evaluate every run that has a best checkpoint and no details of it.

    Raises:
        UserError: its data cannot be had.
    """
    for run in (run for result in results for run in result.members):
        checkpoint = run.folder / "best.pt"
        if details.read(run) is None and checkpoint.exists():
            logger.info("evaluating %s in detail", checkpoint)
            write(run, checkpoint, overrides)


def write(run: Run, checkpoint: Path, overrides: Sequence[str] = ()) -> None:
    """Evaluate one checkpoint, and keep its details and pictures in the run's folder."""
    trained = load_trained(checkpoint, overrides)
    task = trained.task
    if not isinstance(task, Detection):
        raise UserError(f"checkpoint={checkpoint} detects nothing: its task is another one.")
    with closing(trained.loader()) as loader:
        assert isinstance(loader, DetectionLoader)
        found = predict(trained.model, loader, trained.precision) or []
        numbers = evaluate_predictions(loader.annotations, found, task.category_ids)
        folder = run.folder / details.PICTURES
        folder.mkdir(exist_ok=True)
        shown = [image for image in found if loader.data.has_objects(image.image_id)][:SHOWN]
        names = []
        for image in shown:
            picture = found_and_missed(loader.data, image, task.class_names)
            names.append(f"{image.image_id}.jpg")
            Image.fromarray(picture).save(folder / names[-1], quality=85)
    content = details.summary(numbers, task.class_names, task.category_ids)
    write_json(
        run.folder / details.FILE, {"best": details.identity(run), **content, "pictures": names}
    )
