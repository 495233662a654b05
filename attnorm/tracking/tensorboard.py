"""TensorBoard's event files in the run folder: scalars, histograms, texts, the hparams tab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnorm.tracking.sink import Sink, Tags, tagged_scalars

if TYPE_CHECKING:
    from torch import Tensor


class TensorBoard(Sink):
    """Writes to ``tensorboard/`` of the run folder.

    Args:
        tags: Which values of a record become scalars. Those of "eval" are the metrics that the
            hparams tab compares runs by.
        config: The run's config; ``hparams`` are the dotted keys of it that the tab shows.
        start_step: What an interrupted part recorded from here on is hidden.
    """

    def __init__(
        self,
        run_dir: Path,
        tags: Tags,
        config: Mapping[str, Any],
        hparams: Sequence[str],
        start_step: int = 0,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second of imports

        self._tags = tags
        # What the run repeats is hidden: the steps after start_step, whose own points stay.
        folder = str(run_dir / "tensorboard")
        self._writer = SummaryWriter(folder, purge_step=start_step + 1)
        if hparams:
            self._describe(config, hparams)

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        for tag, value in tagged_scalars(self._tags, kind, values).items():
            self._writer.add_scalar(tag, value, step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        self._writer.add_histogram(tag, values, step)

    def picture(self, tag: str, pixels: Tensor, step: int) -> None:
        self._writer.add_image(tag, pixels.numpy(), step, dataformats="HWC")

    def text(self, tag: str, text: str) -> None:
        self._writer.add_text(tag, f"```yaml\n{text}\n```")

    def close(self) -> None:
        self._writer.close()

    def _describe(self, config: Mapping[str, Any], keys: Sequence[str]) -> None:
        from torch.utils.tensorboard.summary import hparams

        values = {key: _lookup(config, key) for key in keys}
        known = {key: value for key, value in values.items() if value is not None}
        # Beside the scalars of these tags; add_hparams would make a run of its own.
        metrics = dict.fromkeys(self._tags.get("eval", {}).values(), 0.0)
        experiment, started, _ = hparams(known, metrics)
        events = self._writer.file_writer
        assert events is not None, "the writer is open"
        events.add_summary(experiment)
        events.add_summary(started)


def _lookup(config: Mapping[str, Any], key: str) -> str | float | None:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
