"""predict.py on real images: probabilities that agree with the evaluation, and clear refusals."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from attnorm.data.digits import digits_root
from attnorm.data.names import readable
from attnorm.run.trained import load_trained
from tests.reporting.models import write_checkpoint
from tests.script import Finished, run_script


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("an"), "an")


@pytest.fixture(scope="module")
def images() -> list[Path]:
    return sorted((digits_root(None) / "val" / "0").iterdir())[:2]


def _predict(checkpoint: Path, *arguments: object) -> Finished:
    return run_script("predict", f"checkpoint={checkpoint}", *map(str, arguments))


def test_the_top_classes_and_probabilities_are_the_models(
    checkpoint: Path, images: list[Path]
) -> None:
    done = _predict(checkpoint, *images)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"([\d.]+) % +│ (\d)", done.stdout)
    assert len(found) == 10, "five classes an image"
    trained = load_trained(checkpoint, ["loader=torch", "data.workers=0"])
    batch, labels = next(iter(trained.batches()))
    assert labels[:2].tolist() == [0, 0], "the first two images of the validation set"
    best = trained.logits(batch[:2]).softmax(1).topk(5)
    assert [int(name) for _, name in found] == best.indices.flatten().tolist()
    expected = (100 * best.values).flatten().tolist()
    assert [float(share) for share, _ in found] == pytest.approx(expected, abs=0.5)


def test_components_are_shown_for_an_and_only_for_an(
    checkpoint: Path, images: list[Path], tmp_path: Path
) -> None:
    done = _predict(checkpoint, images[0], "top=3")
    assert len(re.findall(r"% +│ \d", done.stdout)) == 3
    layers = re.findall(r"blocks\.\S+ +│ +(\d+) │ (.*?)│", done.stdout)
    assert len(layers) == 17
    for components, strongest in layers:
        fired = [(int(k), float(w)) for k, w in re.findall(r"(\d+) \(([\d.]+)\)", strongest)]
        assert len(fired) == 3
        assert all(1 <= number <= int(components) for number, _ in fired)
        assert [w for _, w in fired] == sorted((w for _, w in fired), reverse=True)
    without = _predict(write_checkpoint(tmp_path, "bn"), images[0])
    assert without.returncode == 0
    assert "components" not in without.stdout


def test_a_file_whose_name_has_an_equals_sign_is_an_image(
    checkpoint: Path, images: list[Path], tmp_path: Path
) -> None:
    odd = tmp_path / "top=1 räns.png"
    shutil.copy(images[0], odd)
    done = _predict(checkpoint, odd, "top=2")
    assert done.returncode == 0, done.stderr
    assert str(odd) in done.stdout
    assert len(re.findall(r"% +│ \d", done.stdout)) == 2


def test_code_that_a_checkpoint_names_is_refused_until_it_is_allowed(
    images: list[Path], tmp_path: Path
) -> None:
    layer = "torchvision.ops.FrozenBatchNorm2d"
    path = write_checkpoint(tmp_path, "bn", f"norm.layer={layer}")
    done = _predict(path, images[0])
    assert done.returncode == 2
    assert f"norm.layer={layer}" in done.stderr
    assert f"allow={layer}" in done.stderr
    done = _predict(path, images[0], f"allow={layer}")
    assert "holds another model" in done.stderr, "the layer was taken, and has no step counter"


def test_imagenets_identifiers_are_told_by_name() -> None:
    assert readable("n04146614") == "school bus"
    assert readable("n99999999") == "n99999999"
    assert readable("7") == "7"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["No image is given"]),
        (["nowhere.jpg"], ["nowhere.jpg does not exist"]),
        (["text.jpg"], ["text.jpg cannot be decoded"]),
        (["text.jpg", "top=0"], ["top=0"]),
        (["text.jpg", "norm=bn"], ["norm is not a key"]),
    ],
)
def test_what_cannot_be_shown_is_refused(
    arguments: list[str],
    words: list[str],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.jpg").write_text("not an image")
    done = _predict(checkpoint, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert all(word in done.stderr for word in words), done.stderr
