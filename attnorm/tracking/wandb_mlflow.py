"""Weights & Biases and MLflow, where installed: a run's record besides its own folder."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnorm.errors import UserError
from attnorm.files import write_text
from attnorm.tracking.sink import Sink, Tags, tagged_scalars

if TYPE_CHECKING:
    from torch import Tensor

PROJECT = "attnorm"


def check_service(name: str | None) -> None:
    """Refuse a service whose library is missing, before a run exists.

    Raises:
        UserError: ``tracking.service`` names it, and it is not installed.
    """
    if name is None:
        return
    spec = find_spec(name)
    # Without an origin it is only a folder of that name, such as the service itself leaves behind.
    if spec is None or spec.origin is None:
        raise UserError(
            f"tracking.service={name}, but {name} is not installed: pip install {name}, or leave"
            " tracking.service out (TensorBoard and metrics.jsonl are written anyway)."
        )


def open_service(
    service: str, run_dir: Path, name: str, tags: Tags, config: Mapping[str, Any]
) -> Sink:
    """Connect as the service's own settings (environment, files) say.

    Args:
        service: wandb or mlflow.
        name: The run's, in the service.

    Raises:
        UserError: its library is not installed.
    """
    check_service(service)
    services: dict[str, type[WandB] | type[MLflow]] = {"wandb": WandB, "mlflow": MLflow}
    return services[service](run_dir, name, tags, config)


class WandB(Sink):
    """Weights & Biases: scalars, histograms, and texts in the run's summary."""

    def __init__(self, run_dir: Path, name: str, tags: Tags, config: Mapping[str, Any]) -> None:
        import wandb  # type: ignore[import-not-found]

        self._histogram, self._image, self._tags = wandb.Histogram, wandb.Image, tags
        # By its name: a continued run stays one run.
        self._run = wandb.init(
            project=PROJECT,
            name=name,
            id=name.replace("/", "-"),
            resume="allow",
            dir=str(run_dir),
            config=dict(config),
        )

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if scalars := tagged_scalars(self._tags, kind, values):
            self._run.log(scalars, step=step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        self._run.log({tag: self._histogram(values.flatten().float().cpu().numpy())}, step=step)

    def picture(self, tag: str, pixels: Tensor, step: int) -> None:
        self._run.log({tag: self._image(pixels.numpy())}, step=step)

    def text(self, tag: str, text: str) -> None:
        self._run.summary[tag] = text

    def close(self) -> None:
        self._run.finish()


class MLflow(Sink):
    """MLflow: scalars, texts as artifacts, and of a distribution its moments and ends.

    MLflow has no histograms: ``TAG/mean``, ``TAG/std``, ``TAG/min`` and ``TAG/max`` stand for one.
    """

    def __init__(self, run_dir: Path, name: str, tags: Tags, config: Mapping[str, Any]) -> None:
        import mlflow  # type: ignore[import-not-found]

        self._mlflow, self._tags = mlflow, tags
        id_file = run_dir / "mlflow_run_id"
        mlflow.set_experiment(PROJECT)
        known = id_file.read_text() if id_file.exists() else None
        run = mlflow.start_run(run_id=known, run_name=None if known else name)
        write_text(id_file, run.info.run_id)
        if known is None:
            mlflow.log_dict(dict(config), "config.json")

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if scalars := tagged_scalars(self._tags, kind, values):
            self._mlflow.log_metrics(scalars, step=step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        wide = values.float()
        moments = {
            f"{tag}/mean": float(wide.mean()),
            f"{tag}/std": float(wide.std(correction=0)),  # of a single value too
            f"{tag}/min": float(wide.min()),
            f"{tag}/max": float(wide.max()),
        }
        self._mlflow.log_metrics(moments, step=step)

    def picture(self, tag: str, pixels: Tensor, step: int) -> None:
        self._mlflow.log_image(pixels.numpy(), key=tag.replace("/", "_"), step=step)

    def text(self, tag: str, text: str) -> None:
        self._mlflow.log_text(text, f"{tag}.yaml")

    def close(self) -> None:
        self._mlflow.end_run()
