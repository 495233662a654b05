"""A person's mistakes, through the real entry points: status 2, one message, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from attnorm import create_model
from attnorm.commands import evaluate, train
from attnorm.training import checkpoint
from tests.conftest import SHORT

Start = Callable[..., CompletedProcess[str]]
Refused = Callable[..., str]


def _assert_one_message(message: str) -> None:
    assert message.startswith("error: ")
    assert len(message.strip().splitlines()) <= 3
    assert "Traceback" not in message


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """Call an entry point in an empty folder, check that it is refused, and return the message."""

    def call(script: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        before = sorted(tmp_path.rglob("*"))
        entry = {"train.py": train.main, "eval.py": evaluate.main}
        with pytest.raises(SystemExit) as stopped:
            entry[script](arguments)
        assert stopped.value.code == 2
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        message = capsys.readouterr().err
        _assert_one_message(message)
        return message

    return call


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["arch=resnet5"], ["arch=resnet5", "resnet50", "densenet161"]),
        (["optim.lrr=1"], ["optim.lrr", "did you mean optim.lr"]),
        (["optim.lr=fast"], ["optim.lr", "'fast'"]),
        (["norm=bn", "norm.num_components=5"], ["norm.num_components", "another norm="]),
        (["arch.attentive_sites=layer(\\d)"], ["quotes of its own", "'arch.attentive_sites=\""]),
        (["hydra.sweep.dir=x"], ["hydra.sweep.dir", "hydra.run.dir"]),
        (["--multirun", "norm=bn,an"], ["--multirun", "run_table.py"]),
        (["--cfg", "hydra"], ["--cfg hydra", "--cfg job"]),
        (["recipe=released"], ["recipe=released_mobilenetv2"]),
        (["+arch.timm_options.checkpoint_path=x"], ["checkpoint_path", "arch.pretrained"]),
        (["task.task_class=torch.nn.Linear"], ["task.task_class=torch.nn.Linear", "Task"]),
        (["norm.layer=nonesuch.Norm"], ["norm.layer=nonesuch.Norm", "no module nonesuch"]),
        (["norm.layer=torch.relu"], ["norm.layer=torch.relu", "not a class"]),
        (["optim.factory=torch.optim.SDG"], ["optim.factory=torch.optim.SDG", "no SDG"]),
        (["schedule.curve=attnorm.training.schedule.sine"], ["schedule.curve", "no sine"]),
        (["compile=true", "tracking.histograms_every=5"], ["tracking.histograms_every=5"]),
        (["data=imagenet"], ["data.root"]),
        (["data=folder", "data.root=missing"], ["data.root", "missing"]),
        (["device=cuda"], ["device=cuda", "device=cpu"]),
        (["precision=fp16"], ["precision=fp16", "fp32"]),
        (["batch_size=2000"], ["batch_size", "2000", "1437"]),
        (["optim.implementation=apex"], ["optim.implementation=apex", "GPU"]),
        (["compile=true", "compile_mode=fast"], ["compile_mode=fast", "reduce-overhead"]),
        (["compile_mode=max-autotune"], ["compile_mode=max-autotune", "compile=true"]),
        (["data.num_classes=12"], ["data.num_classes", "12", "10"]),
        (["grad_accumulation=90"], ["grad_accumulation=90", "89"]),
        (["arch.timm_model=resnet5000"], ["arch.timm_model", "resnet5000"]),
        (["arch.attentive_sites='nowhere'"], ["arch.attentive_sites", "nowhere"]),
        (["norm.num_components=[1,2]"], ["norm.num_components"]),
        (["hydra.run.dir=blocked/run"], ["hydra.run.dir", "blocked"]),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="some of these are no mistakes with a GPU")
def test_train_refuses_before_creating_anything(
    arguments: list[str], words: list[str], refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "blocked").write_text("a file where a folder should be")
    message = refused("train.py", *SHORT, *arguments)
    for word in words:
        assert word in message


def _checkpoint(folder: Path, **changes: object) -> Path:
    """What a run of MobileNet-v2-BN on ten classes would leave."""
    from attnorm import config as schema
    from tests.conftest import compose_config

    config = compose_config(*SHORT, "norm=bn")
    state = {
        "model": create_model("mobilenetv2", "bn", num_classes=10).state_dict(),
        "config": schema.to_container(config),
        "class_names": [str(digit) for digit in range(10)],
        "ema": None,
        "epoch": 1,
        "step": 1,
        **changes,
    }
    checkpoint.save_checkpoint(state, folder / "best.pt")
    return folder / "best.pt"


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _checkpoint(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["batch_size=4"], ["checkpoint is not set"]),
        (["checkpoint=nonesuch.pt"], ["nonesuch.pt does not exist"]),
        (["checkpoint=text.pt"], ["text.pt cannot be read"]),
        (["checkpoint=text.pt", "norm=bn"], ["norm is not a key of eval.py"]),
        (["text.pt"], ["'text.pt' is not key=value"]),
        (["checkpoint=best.pt", "weights=average"], ["weights=average", "model or ema"]),
        (["checkpoint=best.pt", "weights=ema"], ["weights=ema", "no averaged weights"]),
        (["checkpoint=best.pt", "batch_size=few"], ["batch_size", "few"]),
        (["checkpoint=best.pt", "data=folder"], ["data.root"]),
        (["checkpoint=best.pt", "loader=tape"], ["loader=tape", "dali"]),
        (["checkpoint=best.pt", "output=text.pt/eval.json"], ["text.pt/eval.json cannot be"]),
    ],
)
def test_eval_refuses(
    arguments: list[str], words: list[str], refused: Refused, mobilenet: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "best.pt").symlink_to(mobilenet)
    message = refused("eval.py", *arguments)
    for word in words:
        assert word in message


def test_a_checkpoint_of_another_architecture_or_class_count_is_refused(
    refused: Refused, tmp_path: Path
) -> None:
    weights = create_model("mobilenetv2", "an", num_classes=10).state_dict()
    _checkpoint(tmp_path, model=weights)
    assert "holds another model" in refused("eval.py", "checkpoint=best.pt")
    _checkpoint(tmp_path, class_names=["cat", "dog"])
    assert "holds another model" in refused("eval.py", "checkpoint=best.pt", "loader=synthetic")


def test_a_checkpoint_that_would_run_code_does_not(refused: Refused, tmp_path: Path) -> None:
    torch.save({"format": "attnorm/1", "hook": torch.nn.Linear(2, 2)}, tmp_path / "best.pt")
    assert "cannot be read" in refused("eval.py", "checkpoint=best.pt")


def test_the_command_exits_with_2_and_one_message(start: Start, tmp_path: Path) -> None:
    done = start("train.py", "epochs=0")
    assert done.returncode == 2
    _assert_one_message(done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_under_torchrun_is_told_once(start: Start, tmp_path: Path) -> None:
    done = start("train.py", *SHORT, "epochs=0", processes=2)
    assert done.returncode != 0
    assert done.stderr.count("error: epochs=0") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_shows_groups_defaults_and_three_examples(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for text in ("arch: ", "norm: an, bn, cbam, dyt", "epochs: 120", "torchrun", "weight_decay"):
        assert text in shown
    examples = shown.split("Examples")[1].split("Groups")[0]
    assert examples.count("#") == 3
