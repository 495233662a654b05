"""Two "nodes" of two processes each on this machine, as torchrun starts them on two machines."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Launch, assert_same_end, lines, wait_for

Start = Callable[..., Launch]
Report = Callable[..., None]


def _two_nodes(launch: Start, *arguments: str) -> list[Launch]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    return [launch(*arguments, "batch_size=3", processes=2, meet=address) for _ in range(2)]


@pytest.mark.slow
def test_two_nodes_of_two_processes_train_as_one_node_of_four(
    launch: Start, tmp_path: Path
) -> None:
    nodes = _two_nodes(launch, "name=nodes", "epochs=2")
    assert [node.wait() for node in nodes] == [0, 0], nodes[0].text
    whole = launch("name=whole", "batch_size=3", "epochs=2", processes=4)
    assert whole.wait() == 0, whole.text
    run = tmp_path / "runs" / "nodes"
    assert lines(run, "event")[0]["world_size"] == 4
    assert [line["images"] for line in lines(run, "eval")] == [12, 12]
    assert_same_end(tmp_path / "runs" / "whole", run)
    logs = sorted(path.name for path in (run / "log").iterdir())
    assert logs == [f"rank{rank}.log" for rank in range(4)]


@pytest.mark.slow
def test_two_nodes_go_on_after_a_process_of_one_was_killed(
    launch: Start, fault: Report, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "nodes"
    nodes = _two_nodes(launch, "name=nodes", "timeout_minutes=0.5", "tracking.log_every=1")
    wait_for(lambda: len(lines(run, "train")) >= 5)
    os.kill(nodes[1].children()[0], signal.SIGKILL)
    assert [node.wait(240) for node in nodes] == [0, 0], nodes[0].text
    assert [line["event"] for line in lines(run, "event")][:2] == ["started", "continued"]
    whole = launch("name=whole", "batch_size=3", "tracking.log_every=1", processes=4)
    assert whole.wait() == 0, whole.text
    # More than two gradients are added in an order that DDP's buckets decide, and the first step
    # of a launch has other buckets than the later ones: bitwise up to there, rounding after it.
    continued = lines(run, "event")[1]["step"]
    ends = [lines(tmp_path / "runs" / name, "train") for name in ("whole", "nodes")]
    whole_losses, losses = ({line["step"]: line["loss"] for line in end} for end in ends)
    assert list(losses) == list(whole_losses) == list(range(1, 19)), "no step twice, none missing"
    for step in range(1, continued + 2):
        assert losses[step] == whole_losses[step]
    assert [line["images"] for line in lines(run, "eval")] == [12] * 6
    fault("SIGKILL of one process on one of two nodes, torchrun --max-restarts", 1)
