"""Share a trained model: a folder for timm and the Hugging Face hub, ONNX, or torch.export.

attnorm export checkpoint=runs/NAME/best.pt [to=folder] [key=value ...]

checkpoint=PATH     a last.pt or best.pt of a classification
to=folder           model.safetensors, config.json in timm's format, README.md (a model card filled
                    from the run) and SHA256SUMS; attnorm.load_model(FOLDER) reads it, and
                    timm.create_model("local-dir:FOLDER", pretrained=True), after "import attnorm"
                    where the normalizer is not timm's. Upload it to a hub as it is
to=onnx             a graph for batches of any size, compared with the model in onnxruntime
to=torch_export     a torch.export program (.pt2), compared with the model
output=PATH         default: exported/, model.onnx or model.pt2 beside the checkpoint
weights=ema         the moving average of a run with ema.decay
allow=PATH          a class that the checkpoint may name though it is not of attnorm, torch.nn or
                    timm.layers
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from attnorm.config import read_arguments
from attnorm.config.arguments import show_help, wants_help
from attnorm.config.checks import require_choice
from attnorm.errors import UserError, exit_on_user_error
from attnorm.run.export import as_folder, as_onnx, as_torch_export
from attnorm.run.trained import Trained, load_trained

TARGETS: dict[str, tuple[str, Callable[[Trained, Path], str]]] = {
    "folder": ("exported", as_folder),
    "onnx": ("model.onnx", as_onnx),
    "torch_export": ("model.pt2", as_torch_export),
}


@dataclass
class ExportArguments:
    """What the command takes."""

    checkpoint: str = MISSING
    to: str = "folder"
    output: str | None = None
    weights: str = "model"
    allow: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_choice("to", self.to, tuple(TARGETS))


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after a mistake."""
    if wants_help(arguments):
        return show_help(__doc__ or "")
    with exit_on_user_error():
        own, _, _ = read_arguments(arguments, ExportArguments, (), "attnorm export")
        source = Path(own.checkpoint)
        name, write = TARGETS[own.to]
        target = source.parent / name if own.output is None else Path(own.output)
        if target.exists():
            raise UserError(f"output={target} exists: choose another name or remove it.")
        overrides = ["device=cpu", "precision=fp32"]
        trained = load_trained(source, overrides, weights=own.weights, allow=own.allow)
        sys.stdout.write(write(trained, target) + "\n")
    return 0
