"""A trained model for others: they get the same numbers from it, with timm and attnorm alone."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import attnorm
from attnorm.commands.evaluate import main as evaluate
from attnorm.commands.export import main as export
from attnorm.commands.train import main as train
from attnorm.data.digits import digits_root
from tests.conftest import ROOT, SMALL_RESNET

QUICK = ["loader=synthetic", "loader.images=64"]
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of one epoch: with AN on digits, and with batch norms on noise."""
    folders = {}
    for norm in ("an", "bn"):
        folder = tmp_path_factory.mktemp("runs") / norm
        arguments = [*SMALL_RESNET, f"norm={norm}", "epochs=1", "batch_size=64", "loader=torch"]
        arguments += ["data.workers=0", "tracking.tensorboard=false", f"hydra.run.dir={folder}"]
        assert train([*arguments, *(QUICK if norm == "bn" else [])]) == 0
        folders[norm] = folder
    return folders


def outputs(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model.eval()(IMAGES)
    return result


def exported(folder: Path, target: Path, *arguments: str) -> Path:
    assert export([f"checkpoint={folder / 'best.pt'}", f"output={target}", *arguments]) == 0
    return target


def test_a_folder_gives_the_runs_errors_in_a_process_that_has_timm_and_attnorm_alone(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    evaluate([f"checkpoint={runs['an'] / 'best.pt'}", "loader=torch", "data.workers=0"])
    expected = json.loads((runs["an"] / "eval.json").read_text())["top1_error"]
    folder = exported(runs["an"], tmp_path / "shared")
    program = f"""
import sys
for name in ("hydra", "tensorboard", "rich", "sklearn"):
    sys.modules[name] = None
import numpy, timm, torch, attnorm
from pathlib import Path
from PIL import Image
model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
same = attnorm.load_model("{folder}")
cfg = model.pretrained_cfg
mean, std = (torch.tensor(cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
wrong = seen = 0
with torch.inference_mode():
    for label, name in enumerate(cfg["label_names"]):
        files = sorted(Path("{digits_root(None)}").glob(f"val/{{name}}/*"))
        pixels = numpy.stack([numpy.asarray(Image.open(f).convert("RGB")) for f in files])
        images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
        logits = model(images)
        assert torch.equal(logits, same(images))
        wrong += int((logits.argmax(1) != label).sum())
        seen += len(files)
print(100 * wrong / seen, seen)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    error, seen = done.stdout.split()[-2:]
    assert int(seen) == 360
    assert float(error) == pytest.approx(expected, abs=0.3), "decoders may round otherwise"


def test_batch_norms_need_timm_alone(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = exported(runs["bn"], tmp_path / "shared")
    program = f"""
import timm, torch
model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
with torch.inference_mode():
    torch.save(model(images), "{tmp_path / "logits.pt"}")
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert torch.equal(logits, outputs(attnorm.load_model(folder)))


def test_a_folder_becomes_another_classifier_or_a_pyramid(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    source = f"local-dir:{exported(runs['an'], tmp_path / 'shared')}"
    whole = timm.create_model(source, pretrained=True)
    assert whole.num_classes == 10
    five = timm.create_model(source, pretrained=True, num_classes=5)
    assert five.get_classifier().out_features == 5
    stem = "conv1.0.weight"
    assert torch.equal(five.state_dict()[stem], whole.state_dict()[stem])
    untrained = timm.create_model(source)
    assert not torch.equal(untrained.state_dict()[stem], whole.state_dict()[stem])
    pyramid = timm.create_model(source, pretrained=True, features_only=True, out_indices=(3, 4))
    features = [m for n, m in pyramid.named_modules() if n.endswith("layer4.0.bn2")]
    assert type(features[0]) is attnorm.AttentiveNorm2d
    with torch.inference_mode():
        last = pyramid.eval()(IMAGES)[-1]
        assert torch.equal(last, whole.eval().forward_features(IMAGES))


def test_a_folder_has_a_card_and_checksums(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = exported(runs["an"], tmp_path / "shared")
    card = (folder / "README.md").read_text()
    assert "| normalizer | an |" in card
    assert "| seed | 0 |" in card
    best = json.loads((runs["an"] / "result.json").read_text())["best"]
    assert f"| top-1 error | {best['top1_error']:.2f} % of 360 validation images" in card
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["README.md", "config.json", "model.safetensors"]
    for line in lines:
        digest, name = line.split()
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("target", ["torch_export", pytest.param("onnx", marks=pytest.mark.slow)])
def test_graphs_compute_the_same(
    runs: dict[str, Path], tmp_path: Path, target: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if target == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    path = exported(runs["an"], tmp_path / f"model.{target}", f"to={target}")
    assert "differ by at most" in capfd.readouterr().out
    expected = outputs(attnorm.load_model(exported(runs["an"], tmp_path / "shared")))
    if target == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        logits = torch.from_numpy(session.run(None, {"images": IMAGES.numpy()})[0])
    else:
        with torch.no_grad():
            logits = torch.export.load(path).module()(IMAGES)
    assert torch.allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_shared_or_read_is_told(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(runs["an"], tmp_path / "shared")
    for arguments, message in (
        ([f"output={folder}"], f"output={folder} exists: choose another name"),
        (["to=paper"], "to=paper"),
        (["weights=ema"], "has no averaged weights"),
    ):
        with pytest.raises(SystemExit) as end:
            export([f"checkpoint={runs['an'] / 'best.pt'}", *arguments])
        assert end.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())
    config = json.loads((folder / "config.json").read_text())
    config["attnorm"]["norm"]["layer"] = "os.system"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(attnorm.UserError, match=r"names norm\.layer=os\.system, which is not of"):
        attnorm.load_model(folder)
    with pytest.raises(attnorm.UserError, match="give a folder that attnorm export wrote"):
        attnorm.load_model(tmp_path / "nowhere")
