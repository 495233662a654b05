"""A trained model for others: a folder with its card, an ONNX graph, a torch.export program."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import attnorm
from attnorm.classification import labelled_images
from attnorm.errors import UserError
from attnorm.files import make_whole, written_whole
from attnorm.models.exported import save_folder
from attnorm.run.trained import Trained

TOLERANCE = 1e-4  # of logits, relative to the largest


def as_folder(trained: Trained, target: Path) -> str:
    """Weights, config, card and checksums; whole under its name or not there."""
    config, data = trained.config, labelled_images(trained.config)
    preprocessing = {
        "input_size": [3, data.image_size, data.image_size],
        "mean": list(data.mean),
        "std": list(data.std),
        # timm resizes to floor(size / crop_pct): half a pixel more than it should be.
        "crop_pct": data.image_size / (data.resize_size + 0.5),
        "interpolation": data.interpolation,
    }
    weights = trained.model.state_dict()

    def fill(building: Path) -> None:
        save_folder(building, weights, config.arch, config.norm, trained.class_names, preprocessing)
        (building / "README.md").write_text(card(trained, target.name), encoding="utf-8")
        sums = [f"{_sha256(path)}  {path.name}\n" for path in sorted(building.iterdir())]
        (building / "SHA256SUMS").write_text("".join(sums), encoding="ascii")

    make_whole(target, fill, lambda: False)
    return f'{target}: load it with attnorm.load_model("{target}")'


def card(trained: Trained, name: str) -> str:
    """The model card: what was trained, how, on what, and how good it is."""
    config, folder = trained.config, trained.path.parent
    measured = _read_json(folder / "eval.json")
    if measured.get("checkpoint") not in (None, str(trained.path)):
        measured = {}
    training = _read_json(folder / "result.json")
    best = training.get("best" if trained.path.name == "best.pt" else "final") or {}
    rows: list[tuple[str, Any]] = [
        ("architecture", config.arch.name),
        ("normalizer", config.norm.name),
        ("parameters", f"{sum(p.numel() for p in trained.model.parameters()):,}"),
        ("data", f"{config.data.name}, {len(trained.class_names)} classes"),
        ("epochs", config.epochs),
        ("batch size of a process", config.batch_size),
        ("learning rate", f"{config.optim.lr:g} per {config.optim.reference_batch} images"),
        ("weight decay", f"{config.optim.weight_decay:g}"),
        ("precision", config.precision),
        ("seed", config.seed),
        ("weights of epoch", best.get("epoch", "unknown")),
        ("hours", _hours(training)),
    ]
    for key, label in (("top1_error", "top-1 error"), ("top5_error", "top-5 error")):
        value = measured.get(key, best.get(key))
        if value is not None:
            images = measured.get("images", best.get("images", "all"))
            rows.append((label, f"{value:.2f} % of {images} validation images, one run"))
    head = {
        "library_name": "timm",
        "tags": ["image-classification", "attnorm", config.arch.name, config.norm.name],
    }
    lines = ["---", yaml.safe_dump(head, sort_keys=False).strip(), "---", f"# {name}", ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows), ""]
    lines += [
        "```python",
        "import attnorm",
        "",
        f'model = attnorm.load_model("{name}")',
        f'# or: timm.create_model("local-dir:{name}", pretrained=True)',
        "```",
        "",
        f"Written by attnorm {attnorm.__version__} (Apache-2.0). The licence of these weights is"
        " their maker's to choose, within that of the images they were trained on. Checksums are in"
        " `SHA256SUMS`.",
        "",
    ]
    return "\n".join(lines)


def as_onnx(trained: Trained, target: Path) -> str:
    """A graph with a free batch size, run by onnxruntime against the model.

    Raises:
        UserError: onnx, onnxscript or onnxruntime is missing.
    """
    needed = ("onnx", "onnxscript", "onnxruntime")
    missing = [package for package in needed if find_spec(package) is None]
    if missing:
        raise UserError(f"to=onnx needs {', '.join(missing)}: pip install {' '.join(missing)}.")
    import onnxruntime

    images = _images(trained)
    batch = {0: torch.export.Dim("batch", min=1)}
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(target) as temporary:
        torch.onnx.export(
            trained.model,
            (images,),
            str(temporary),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=(batch,),
            external_data=False,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        for count in (len(images), 1):
            (logits,) = session.run(None, {"images": images[:count].numpy()})
            difference = _compare(trained, images[:count], torch.from_numpy(logits), "onnxruntime")
    return f"{target}: onnxruntime's logits differ by at most {difference:.1e}"


def as_torch_export(trained: Trained, target: Path) -> str:
    """A program with a free batch size, loaded again and run against the model."""
    images = _images(trained)
    batch = {0: torch.export.Dim("batch", min=1)}
    target.parent.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode(False), torch.no_grad():
        program = torch.export.export(trained.model, (images,), dynamic_shapes=(batch,))
    with written_whole(target) as temporary:
        with temporary.open("wb") as file:
            torch.export.save(program, file)
        with temporary.open("rb") as file:
            again = torch.export.load(file).module()
        for count in (len(images), 1):
            with torch.no_grad():
                logits = again(images[:count])
            difference = _compare(trained, images[:count], logits, "torch.export")
    return f"{target}: its logits differ by at most {difference:.1e}"


def _images(trained: Trained) -> Tensor:
    """A batch of noise; two images, since a batch of one would be taken for a constant."""
    size = labelled_images(trained.config).image_size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def _compare(trained: Trained, images: Tensor, logits: Tensor, who: str) -> float:
    expected = trained.logits(images)
    difference = float((logits - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    if not difference <= TOLERANCE:
        raise RuntimeError(f"{who} computes other logits: they differ by {difference:.1e}")
    return difference


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    """A result beside the checkpoint; empty where there is none."""
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _hours(training: dict[str, Any]) -> str:
    seconds = training.get("wall_seconds")
    return "unknown" if seconds is None else f"{seconds / 3600:.2f}"
