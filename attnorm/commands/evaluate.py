"""Evaluate a checkpoint on the whole validation set: top-1 and top-5 errors, or COCO's AP.

python eval.py checkpoint=runs/NAME/best.pt [key=value ...]       or attnorm eval, with the same
torchrun --standalone --nproc-per-node=8 eval.py checkpoint=... [the same]

checkpoint=PATH     a last.pt or best.pt; the model is built from the config inside it
predictions=FILE    instead of a checkpoint: a detector's predictions in COCO's result format, with
                    data=coco data.root=... that they were made on
loaders=all         the same images through DALI, torch and timm's transform, or [dali,torch]:
                    their errors beside each other, written to loaders.json. With checkpoint= given
                    several times, also each one's errors by every loader, and over all of them
labels=real         the reassessed labels of ILSVRC's validation images (ReaL)
classes=NAME        imagenet_a or imagenet_r: only their 200 classes can be the answer, for data=
                    imagenet_a and imagenet_r
weights=NAME        model (default), or ema: their moving average, of a run with ema.decay
output=PATH         where to write the result (default: eval.json beside the checkpoint;
                    eval_real.json, eval_imagenet_v2.json for other labels and data sets)
data=NAME data.KEY= another data set, such as imagenet_v2, imagenet_a, imagenet_r or sketch, or
                    another place: data.root=/data/imagenet
loader=NAME         auto, dali, torch, timm or synthetic (default: auto)
batch_size=N        images per process and step (default: as trained)
precision=, device=, channels_last=   as in train.py (default: auto, auto, true)
allow=PATH          a class that the checkpoint may name though it is not of attnorm, torch.nn
                    or timm.layers, such as mypackage.MyNorm; [A,B] for several
timeout_minutes=N   how long processes wait for one that does not answer (default: 10)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from attnorm import config as schema
from attnorm import distributed
from attnorm.config.arguments import show_help, wants_help
from attnorm.data.imagenet_labels import SUBSETS
from attnorm.errors import UserError, exit_on_user_error
from attnorm.files import write_json
from attnorm.run.evaluate import evaluate_checkpoint, results_table, show
from attnorm.run.trained import KEYS, Trained


@dataclass
class EvalArguments:
    """What ``eval.py`` takes beside keys of the config."""

    checkpoint: list[str] = field(default_factory=list)
    predictions: str | None = None
    output: str | None = None
    loaders: Any = None
    weights: str = "model"
    labels: str = "original"
    classes: str | None = None
    device: str = "auto"
    timeout_minutes: float = 10.0
    allow: list[str] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after a mistake."""
    if wants_help(arguments):
        return show_help(__doc__ or "")
    keys = [key for key in KEYS if key != "device"]
    with exit_on_user_error():
        own, overrides, _ = schema.read_arguments(arguments, EvalArguments, keys, "eval.py")
        if own.predictions is not None:
            return _evaluate_file(own, overrides)
        if not own.checkpoint:
            raise UserError("checkpoint is not set: pass checkpoint=runs/NAME/best.pt.")
        path, output = Path(own.checkpoint[0]), _output(own)
        if own.loaders is not None:
            return _compare_loaders(own, output or path.parent / "loaders.json", overrides)
        if len(own.checkpoint) > 1:
            raise UserError("several checkpoints are for loaders=: evaluate one at a time.")
        evaluated = evaluate_checkpoint(
            path,
            overrides,
            weights=own.weights,
            allow=own.allow,
            labels=own.labels,
            classes=own.classes,
            device=own.device,
            timeout_minutes=own.timeout_minutes,
        )
        if distributed.rank() == 0:
            trained = evaluated.trained
            output = output or path.parent / f"{_name(own, trained)}.json"
            source = {"checkpoint": str(path), "weights": own.weights, **_grading(own)}
            source["data"] = trained.config.data.name
            found = trained.task.report(output.parent)
            write_json(output, {**source, **evaluated.metrics, **found})
            console = Console()
            show(evaluated, console)
            console.print(f"written to {output}", highlight=False, soft_wrap=True, markup=False)
    return 0


def _grading(own: EvalArguments) -> dict[str, str]:
    """Labels and classes, where they are not the data set's own."""
    graded = {"labels": own.labels} if own.labels != "original" else {}
    return graded | ({"classes": own.classes} if own.classes is not None else {})


def _name(own: EvalArguments, trained: Trained) -> str:
    """Of the result: what it was evaluated on and by, where that is not what it was trained on."""
    data = trained.config.data.name
    parts = [data] if data != trained.trained_on else []
    parts += [part for part in _grading(own).values() if part not in parts]
    if data in SUBSETS and own.classes is None:
        parts.append("all_classes")
    return "_".join(["eval", *parts])


def _output(own: EvalArguments) -> Path | None:
    """Where a person wants the result. Its folder is made now: an evaluation may take hours.

    Raises:
        UserError: it cannot be made.
    """
    if own.output is None:
        return None
    output = Path(own.output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output={output} cannot be written ({error.strerror}): give another path."
        ) from error
    return output


def _compare_loaders(own: EvalArguments, output: Path, overrides: Sequence[str]) -> int:
    from attnorm.run import loader_parity  # timm's transforms take a second to import

    names, missing = loader_parity.chosen_loaders(own.loaders)
    changes = [*overrides, f"device={own.device}"]
    comparisons = [
        loader_parity.compare_loaders(
            Path(path), names, changes, weights=own.weights, allow=own.allow
        )
        for path in own.checkpoint
    ]
    write_json(output, {"weights": own.weights, **loader_parity.as_record(comparisons)})
    console = Console()
    loader_parity.show(comparisons, console)
    for name in missing:
        console.print(f"loader={name} is not installed here")
    console.print(f"written to {output}", highlight=False, soft_wrap=True, markup=False)
    return 0


def _evaluate_file(own: EvalArguments, overrides: Sequence[str]) -> int:
    """A file of predictions against the annotations that ``data`` names."""
    from attnorm.detection.task import Detection, evaluate_file  # a second of imports

    if own.checkpoint:
        raise UserError("predictions= and checkpoint= exclude each other: give one of them.")
    assert own.predictions is not None
    path = Path(own.predictions)
    output = _output(own) or path.parent / "eval.json"
    given = schema.compose(["task=detection", "data=coco", *overrides])
    metrics, classes = evaluate_file(path, given)
    write_json(output, {"predictions": own.predictions, **metrics, "AP_by_class": classes})
    console = Console()
    console.print(results_table(own.predictions, Detection.eval_metrics, metrics))
    console.print(f"written to {output}", highlight=False, soft_wrap=True, markup=False)
    return 0
