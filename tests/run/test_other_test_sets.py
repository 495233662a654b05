"""Other labels and other test sets than ILSVRC's own, on folders with the right names."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from attnorm import config as schema
from attnorm.classification import Classification
from attnorm.commands.evaluate import main
from attnorm.data.imagenet_labels import reassessed_labels, subset_columns, synsets
from attnorm.errors import UserError
from attnorm.training.checkpoint import save_checkpoint
from attnorm.training.precision import Precision

CPU = torch.device("cpu")
FP32 = Precision("fp32", "cpu")


class Fixed(nn.Module):
    """Logits by image number."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.table = logits

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.table[numbers]


def evaluate(task: Classification, logits: torch.Tensor, labels: list[int]) -> Any:
    numbers = torch.arange(len(labels))
    batches = [(numbers[:2], torch.tensor(labels[:2])), (numbers[2:], torch.tensor(labels[2:]))]
    loader = SimpleNamespace(epoch=lambda epoch: iter(batches), num_images=len(labels))
    return task.evaluate(Fixed(logits), loader, FP32, CPU)


class _Named:
    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> str:
        return f"/data/val/n01440764/{self._names[index]}"


def val(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def known_labels() -> list[list[int]]:
    import timm.data

    path = Path(timm.data.__file__).parent / "_info" / "imagenet_real_labels.json"
    labels: list[list[int]] = json.loads(path.read_text())
    return labels


def test_reassessed_labels_are_those_of_the_file_in_the_models_own_order() -> None:
    known = known_labels()
    several = next(n for n, labels in enumerate(known) if len(labels) == 3)
    none = next(n for n, labels in enumerate(known) if not labels)
    names = list(synsets())[::-1]  # a model whose classes are in another order
    one = next(n for n, labels in enumerate(known) if len(labels) == 1)
    images = _Named((val(several + 1), val(none + 1), val(one + 1)))
    table = reassessed_labels(images, names)  # type: ignore[arg-type]
    assert sorted(table[0]) == sorted(999 - label for label in known[several])
    assert table[1].tolist() == [-1, -1, -1]
    assert table[2].tolist() == [999 - known[one][0], -1, -1]
    with pytest.raises(UserError, match=r"labels=real knows ILSVRC2012_val_00000001\.JPEG to"):
        reassessed_labels(_Named(("photo.jpg",)), names)  # type: ignore[arg-type]


def test_any_of_several_labels_is_right_and_images_without_one_do_not_count() -> None:
    task = Classification([str(n) for n in range(8)])
    task._several = torch.tensor([[3, 1], [-1, -1], [0, -1], [7, 2]])
    logits = torch.zeros(4, 8)
    logits[0, 1] = 5  # the second label of two
    logits[2, 6] = 5  # wrong; 0 comes after
    logits[3, [4, 5, 6, 1, 0]] = torch.tensor([9.0, 8, 7, 6, 5])  # neither 7 nor 2 among five
    metrics = evaluate(task, logits, [0, 1, 2, 3])
    assert metrics["images"] == 3
    assert metrics["top1_error"] == pytest.approx(100 * 2 / 3)
    log_p = logits.log_softmax(1)
    losses = [-(log_p[0, 3] + log_p[0, 1]) / 2, -log_p[2, 0], -(log_p[3, 7] + log_p[3, 2]) / 2]
    assert metrics["loss"] == pytest.approx(float(sum(losses)) / 3)


def test_only_a_subsets_classes_can_be_the_answer() -> None:
    task = Classification([str(n) for n in range(6)])
    logits = torch.tensor([[9.0, 1, 2, 0, 0, 0], [0, 0, 0, 9, 5, 6]])
    assert evaluate(task, logits, [2, 5])["top1_error"] == 100
    task._columns = torch.tensor([1, 2, 4, 5])
    metrics = evaluate(task, logits, [2, 5])
    assert metrics["top1_error"] == 0
    expected = logits[:, [1, 2, 4, 5]].log_softmax(1)
    assert metrics["loss"] == pytest.approx(-float(expected[0, 1] + expected[1, 3]) / 2)


def test_a_subsets_classes_are_timms() -> None:
    names = list(synsets())
    columns = subset_columns("imagenet_a", names)
    assert columns[:3].tolist() == [6, 11, 13]
    assert len(columns) == len(set(columns.tolist())) == 200
    with pytest.raises(UserError, match="classes=imagenet_r: the model was not trained on 199"):
        subset_columns("imagenet_r", [synsets("imagenet_r")[0], "n00000000"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of random weights that knows ILSVRC's classes."""
    path = tmp_path_factory.mktemp("run") / "best.pt"
    overrides = ["arch=timm", "arch.timm_model=resnet10t", "norm=bn", "data=imagenet"]
    overrides += ["data.image_size=32", "data.resize_size=32", "data.workers=0", "loader=torch"]
    config = schema.compose(overrides)
    torch.manual_seed(0)
    task = Classification(list(synsets()))
    state = {"model": task.build_model(config).state_dict(), "epoch": 1, "step": 1}
    save_checkpoint({**state, **task.stored(), "config": schema.to_container(config)}, path)
    return path


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_folders_with_their_own_names_are_evaluated(checkpoint: Path, tmp_path: Path) -> None:
    names = synsets()
    picked = [0, 2, 10, 999]
    for seed, number in enumerate(picked):
        write(tmp_path / "v2" / str(number) / "photo.jpeg", seed)
        write(tmp_path / "sketch" / names[number] / "photo.jpeg", seed)
    for seed, wnid in enumerate(synsets("imagenet_a")[:4]):
        write(tmp_path / "a" / wnid / "photo.jpeg", seed)
    for number in (1, 2, 3, 4):
        write(tmp_path / "ilsvrc" / "val" / names[number] / val(number), number)
    small = ["data.image_size=32", "data.resize_size=32", "data.workers=0", "loader=torch"]
    start = [f"checkpoint={checkpoint}", *small]

    def metrics(output: str, *arguments: str) -> dict[str, Any]:
        assert main([*start, *arguments]) == 0
        found: dict[str, Any] = json.loads((checkpoint.parent / output).read_text())
        return found

    v2 = metrics("eval_imagenet_v2.json", "data=imagenet_v2", f"data.root={tmp_path / 'v2'}")
    sketch = metrics("eval_sketch.json", "data=sketch", f"data.root={tmp_path / 'sketch'}")
    assert v2.pop("loss") == pytest.approx(sketch.pop("loss"), rel=1e-5), "another order"
    assert (v2.pop("data"), sketch.pop("data")) == ("imagenet_v2", "sketch")
    assert v2 == sketch, "the same pictures, under numbers and under WordNet ids"
    assert v2["images"] == 4
    where = ["data=imagenet_a", f"data.root={tmp_path / 'a'}"]
    a = metrics("eval_imagenet_a.json", *where, "classes=imagenet_a")
    whole = metrics("eval_imagenet_a_all_classes.json", *where)
    assert a["loss"] < whole["loss"], "200 classes share what 1000 did"
    where = [f"data.root={tmp_path / 'ilsvrc'}", "data.num_classes=null"]
    real = metrics("eval_real.json", *where, "labels=real")
    assert real["images"] == sum(bool(labels) for labels in known_labels()[:4])
    assert real["labels"] == "real"
    assert not (checkpoint.parent / "eval.json").exists(), "it is that of the run's own data"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["labels=best"], "labels=best"),
        (["classes=imagenet_b"], "classes=imagenet_b"),
        (["data=imagenet_v2"], "the class folder n01440764 is not a number"),
    ],
)
def test_a_mistake_says_what_can_be_had(
    checkpoint: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "val" / synsets()[0] / "photo.jpeg", 0)
    root = tmp_path / "val" if arguments == ["data=imagenet_v2"] else tmp_path
    with pytest.raises(SystemExit) as end:
        main([f"checkpoint={checkpoint}", *arguments, f"data.root={root}", "loader=torch"])
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_result_goes_into_a_folder_that_is_made_for_it(checkpoint: Path, tmp_path: Path) -> None:
    write(tmp_path / "val" / synsets()[0] / "photo.jpeg", 0)
    start = [f"checkpoint={checkpoint}", "data.num_classes=null", f"data.root={tmp_path}"]
    output = tmp_path / "new" / "folder" / "eval.json"
    assert main([*start, "loader=torch", "data.workers=0", f"output={output}"]) == 0
    assert json.loads(output.read_text())["images"] == 1


def test_a_result_that_could_not_be_written_is_told_first(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        main([f"checkpoint={checkpoint}", "data.root=/nowhere", f"output={tmp_path}/file/a/b.json"])
    assert "cannot be written" in capsys.readouterr().err
