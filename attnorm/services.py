"""Experiment services that a run's curves can go to besides its own folder, where installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from attnorm.errors import UserError

PROJECT = "attnorm"


class Service(Protocol):
    """Where scalars go."""

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Record scalars by TensorBoard's tags."""

    def close(self) -> None:
        """Send what is left."""


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


def open_service(name: str, run_dir: Path, config: Mapping[str, Any]) -> Service:
    """Connect as the service's own settings (environment, files) say.

    Raises:
        UserError: its library is not installed.
    """
    check_service(name)
    services: dict[str, type[_WandB] | type[_MLflow]] = {"wandb": _WandB, "mlflow": _MLflow}
    return services[name](run_dir, config)


class _WandB:
    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        import wandb  # type: ignore[import-not-found]

        # Named after the folder: a continued run stays one run.
        self._run = wandb.init(
            project=PROJECT,
            name=str(config["name"]),
            id=str(config["name"]).replace("/", "-"),
            resume="allow",
            dir=str(run_dir),
            config=dict(config),
        )

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        import mlflow  # type: ignore[import-not-found]

        self._mlflow = mlflow
        self._id_file = run_dir / "mlflow_run_id"
        mlflow.set_experiment(PROJECT)
        known = self._id_file.read_text() if self._id_file.exists() else None
        run = mlflow.start_run(run_id=known, run_name=None if known else str(config["name"]))
        self._id_file.write_text(run.info.run_id)
        if known is None:
            mlflow.log_dict(dict(config), "config.json")

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(scalars), step=step)

    def close(self) -> None:
        self._mlflow.end_run()
