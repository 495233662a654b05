"""The built wheel in an empty folder: it has what it needs to train, and no more."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from attnorm import __version__
from tests.conftest import ROOT, TINY_RESNET


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_its_configs_and_its_types(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name.startswith(f"attnorm-{__version__}-")
    assert {"attnorm/py.typed", "attnorm/configs/train.yaml", "attnorm/norms/native.c"} <= set(
        names
    )
    assert not [name for name in names if name.startswith(("benchmarks/", "tests/", "scripts/"))]


def test_the_wheel_says_under_which_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        folder = f"attnorm-{__version__}.dist-info"
        metadata = archive.read(f"{folder}/METADATA").decode()
        licence = archive.read(f"{folder}/licenses/LICENSE").decode()
        assert archive.read(f"{folder}/licenses/NOTICE")
    assert "License-Expression: Apache-2.0" in metadata
    assert "Version 2.0, January 2004" in licence


def test_the_version_is_one() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    newest = re.search(r"^## (\S+) – (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest.groups() == (__version__, str(citation["date-released"]))


def test_the_installed_command_trains_and_evaluates_in_an_empty_folder(
    wheel: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q"]
    subprocess.run([*install, "--target", str(site), str(wheel)], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()

    def attnorm(*arguments: str) -> str:
        done = subprocess.run(
            [str(site / "bin" / "attnorm"), *arguments],
            cwd=empty,
            env={**os.environ, "PYTHONPATH": str(site), "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    attnorm("train", *TINY_RESNET, "norm=an", "epochs=1", "batch_size=128", "name=first")
    shown = attnorm("eval", "checkpoint=runs/first/best.pt")
    assert "top-1 error" in shown
    trained = json.loads((empty / "runs" / "first" / "result.json").read_text())
    evaluated = json.loads((empty / "runs" / "first" / "eval.json").read_text())
    assert evaluated["images"] == 360
    assert evaluated["top1_error"] == pytest.approx(trained["best"]["top1_error"])
    assert trained["git_commit"] is None, "it ran from the wheel"
    assert "train a model" in attnorm()


def test_an_unknown_command_is_refused_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from attnorm.__main__ import COMMANDS, main

    assert main(["trian"]) == 2
    message = capsys.readouterr().err
    assert all(name in message for name in COMMANDS)


def _python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The checkout's package in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_base_package_makes_models_and_names_the_extra_for_a_command(tmp_path: Path) -> None:
    """``pip install attnorm`` is enough for a model with any normalizer of ours.

    Other modules cannot be found, as where the base package alone is installed.
    """
    hidden = ("hydra", "rich", "tensorboard", "matplotlib", "scipy", "sklearn", "nvidia.dali")
    code = (
        f"import sys\nfor name in {hidden}: sys.modules[name] = None\n"
        "import attnorm, torch, timm\n"
        "model = attnorm.create_model('mobilenetv2', norm='an', num_classes=3)\n"
        "assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)\n"
        "attnorm.convert(timm.create_model('resnet10t'), norm='sn')\n"
        "assert timm.is_model('resnet50_an')\n"
        "print('all models', flush=True)\n"
        "from attnorm.__main__ import main\n"
        "sys.exit(main(['train', 'epochs=1']))"
    )
    done = _python(code, tmp_path)
    assert done.stdout == "all models\n", done.stderr
    assert done.returncode == 2
    assert "pip install 'attnorm[train]'" in done.stderr
    assert "Traceback" not in done.stderr
