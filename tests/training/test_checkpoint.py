"""Checkpoint files: whole or absent, harmless to read, and refused with a reason."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attnorm.errors import UserError
from attnorm.training import checkpoint


def _state(**extra: Any) -> dict[str, Any]:
    model = nn.Linear(3, 2)
    return {
        "model": model.state_dict(),
        "config": {"seed": 0},
        "class_names": ["a", "b"],
        "epoch": 1,
        "step": 5,
        **extra,
    }


def test_a_checkpoint_is_read_back_as_written(tmp_path: Path) -> None:
    state = _state()
    checkpoint.save_checkpoint(state, tmp_path / "last.pt")
    loaded = checkpoint.load_checkpoint(tmp_path / "last.pt")
    assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])
    assert loaded["class_names"] == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_failed_write_leaves_the_previous_checkpoint_and_no_litter(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(_state(step=5), tmp_path / "last.pt")
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save_checkpoint(_state(step=6, hook=lambda: None), tmp_path / "last.pt")
    assert checkpoint.load_checkpoint(tmp_path / "last.pt")["step"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_best_keeps_its_content_when_last_is_replaced(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(_state(step=1), tmp_path / "last.pt")
    checkpoint.link_checkpoint(tmp_path / "last.pt", tmp_path / "best.pt")
    checkpoint.save_checkpoint(_state(step=2), tmp_path / "last.pt")
    assert checkpoint.load_checkpoint(tmp_path / "best.pt")["step"] == 1
    checkpoint.link_checkpoint(tmp_path / "last.pt", tmp_path / "best.pt")
    assert checkpoint.load_checkpoint(tmp_path / "best.pt")["step"] == 2


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nonesuch\.pt does not exist"):
        checkpoint.load_checkpoint(tmp_path / "nonesuch.pt")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save_checkpoint(_state(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(UserError, match=r"last\.pt cannot be read: it is damaged"):
        checkpoint.load_checkpoint(path)


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match="not written by attnorm"):
        checkpoint.load_checkpoint(tmp_path / "foreign.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(UserError, match="not written by attnorm"):
        checkpoint.load_checkpoint(tmp_path / "tensor.pt")


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    torch.save(_state(payload=_Malicious(tmp_path / "marker")), tmp_path / "evil.pt")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "marker").exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert (tmp_path / "marker").exists(), "the file would have run its code"


def test_weights_of_another_model_are_refused_by_the_first_tensor_that_differs() -> None:
    state = nn.Linear(3, 2).state_dict()
    with pytest.raises(UserError, match="1 tensors do not fit, the first is weight"):
        checkpoint.load_weights(nn.Linear(4, 2), state, Path("best.pt"))
    with pytest.raises(UserError, match="the first is bias"):
        checkpoint.load_weights(nn.Linear(3, 2, bias=False), state, Path("best.pt"))


def test_differences_name_the_fields_that_change_a_result_and_no_others() -> None:
    stored = {"name": "a", "epochs": 5, "data": {"root": "/a", "image_size": 32, "workers": 1}}
    wanted = {"name": "b", "epochs": 9, "data": {"root": "/b", "image_size": 64, "workers": 8}}
    assert checkpoint.config_differences(stored, wanted) == [
        "data.image_size: 32 -> 64",
        "epochs: 5 -> 9",
    ]
