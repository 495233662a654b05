"""A detector's best checkpoint evaluated in detail: what is kept beside it, once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnorm.commands import train
from attnorm.errors import UserError
from attnorm.reporting.detection_tables import details, examine
from attnorm.reporting.detection_tables.table import Result
from attnorm.reporting.runs import read_run
from tests.conftest import SMALL_RESNET
from tests.reporting.models import write_checkpoint
from tests.reporting.runs import write_run

SETTINGS = ["task=detection", "detector=mask_rcnn", "data=digit_scenes", "batch_size=4"]
SETTINGS += ["data.num_train_scenes=8", "data.num_val_scenes=3", "data.workers=0"]
SETTINGS += ["detector.channels=16", "detector.fc_width=16", "detector.freeze=none"]
SETTINGS += ["detector.score_threshold=0.01", "epochs=1", "tracking.tensorboard=false"]
SETTINGS += ["optim.lr=0.001", "name=seen", *SMALL_RESNET]


def test_a_best_checkpoint_is_examined_once(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "seen"
    assert train.main([*SETTINGS, f"hydra.run.dir={folder}"]) == 0
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


def test_a_classifier_cannot_be_examined(tmp_path: Path) -> None:
    run = write_run(tmp_path, "mobilenetv2", "bn", [50.0, 40.0, 30.0])
    checkpoint = write_checkpoint(run, "bn")
    with pytest.raises(UserError, match="detects nothing"):
        examine.write(read_run(run), checkpoint)
