"""A detector's best checkpoint evaluated in detail: what is kept beside it, once."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnorm.errors import UserError
from attnorm.reporting.detection_tables import details, examine
from attnorm.reporting.detection_tables.table import Result
from attnorm.reporting.runs import read_run
from tests.conftest import SHORT, SMALL_RESNET

SETTINGS = ["task=detection", "detector=mask_rcnn", "data=digit_scenes", "batch_size=4"]
SETTINGS += ["data.num_train_scenes=8", "data.num_val_scenes=3", "data.workers=0"]
SETTINGS += ["detector.channels=16", "detector.fc_width=16", "detector.freeze=none"]
SETTINGS += ["detector.score_threshold=0.01", "epochs=1", "tracking.tensorboard=false"]
SETTINGS += ["optim.lr=0.001", "name=seen", *SMALL_RESNET]


def test_a_best_checkpoint_is_examined_once(
    start: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    trained = start("train.py", *SETTINGS)
    assert trained.returncode == 0, trained.stderr
    folder = tmp_path / "runs" / "seen"
    run = read_run(folder)
    examine.evaluate_missing([Result((run,))])

    found = details.read(run)
    assert found is not None
    for kind in ("box", "mask"):
        values = [value for value in found["classes"][kind].values() if value is not None]
        assert np.mean(values) == pytest.approx(run.best[f"{kind}_AP"]), "the run's own number"
        assert list(found["classes"][kind]) == [str(digit) for digit in range(10)]
        mean = details.curve(Result((run,)), kind, "AP50")
        assert mean is not None
        assert np.mean(mean) == pytest.approx(run.best[f"{kind}_AP50"])
    pictures = details.pictures(run)
    assert len(pictures) >= 1
    assert np.asarray(Image.open(pictures[0])).std() > 5

    (folder / "best.pt").unlink()  # would be an error if it were wanted again
    written = (folder / details.FILE).stat().st_mtime_ns
    examine.evaluate_missing([Result((run,))])
    assert (folder / details.FILE).stat().st_mtime_ns == written
    shutil.rmtree(folder / details.PICTURES)
    assert details.pictures(run) == []
    content = json.loads((folder / details.FILE).read_text())
    assert content["best"]["box_AP"] == run.best["box_AP"]


def test_a_classifier_cannot_be_examined(
    start: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    trained = start("train.py", *SHORT, "data=digits", "loader=synthetic", "loader.images=32",
                    "name=sorted")  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    folder = tmp_path / "runs" / "sorted"
    with pytest.raises(UserError, match="detects nothing"):
        examine.write(read_run(folder), folder / "best.pt")
