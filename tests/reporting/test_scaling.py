"""scripts/scaling.py: the formula against arithmetic by hand, DDP's own bytes, and its page."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from attnorm.errors import UserError
from attnorm.models import create_model
from attnorm.reporting.scaling import (
    BESIDE_MEASURED,
    BYTES_PER_GRADIENT,
    FROM_ABOVE,
    FROM_BELOW,
    OPERATIONS,
    ROOFLINE,
    TRAIN_IMAGES,
    VAL_IMAGES,
    Machine,
    Plan,
    all_reduce_seconds,
    bounds,
    estimate,
    paper_batch,
    parameters,
    pieces,
)
from attnorm.reporting.table1_paper import ROWS, PaperRow
from tests.conftest import ROOT, compose_config
from tests.script import Finished, run_script

EXPECTED = json.loads((ROOT / "tests" / "models" / "expected.json").read_text())
BY_LABEL = {row.label: row for row in ROWS}
RESNET = BY_LABEL["ResNet-50-BN"]  # 25,557,032 parameters: 102,228,128 bytes
SN = BY_LABEL["ResNet-50-SN (8,32)"]
PLAIN = Machine(nvlink_gbytes=100, network_gbytes=10, overlap=0.5, launch_us=0)


# ---------------------------------------------------------------------- the formula by hand


def test_one_gpu_accumulates_the_papers_batch_and_sends_nothing() -> None:
    found = estimate(RESNET, 1000.0, 1, Plan(epochs=2), PLAIN)
    # 512 images at 1000 a second; 50,000 at 3000 a second; 2502 whole batches in 1,281,167.
    assert found.compute_seconds == pytest.approx(0.512)
    assert found.exposed_seconds == 0
    assert found.evaluation_seconds == pytest.approx(16.6666667)
    assert found.hours == pytest.approx(2 * (2502 * 0.512 + 16.6666667) / 3600)
    assert found.gpu_hours == found.hours


def test_eight_gpus_in_a_node_wait_for_what_backward_does_not_hide() -> None:
    found = estimate(RESNET, 32_000.0, 8, Plan(epochs=1, evaluate=False), PLAIN)
    # 64 images: 2 ms, of which backward 1.333 and half of that hides communication. The ring sends
    # 1.75 × 102,228,128 bytes at 100 GB/s: 1.788992 ms.
    assert found.compute_seconds == pytest.approx(2e-3)
    assert found.exposed_seconds == pytest.approx(1.788992e-3 - 0.666667e-3, rel=1e-5)
    assert found.hours == pytest.approx(2502 * 3.122326e-3 / 3600, rel=1e-5)
    assert found.gpu_hours == pytest.approx(8 * found.hours)


def test_the_last_bucket_is_never_hidden() -> None:
    found = estimate(RESNET, 1000.0, 8, Plan(), PLAIN)
    # 25 MiB = 26,214,400 bytes; 1.75 × that at 100 GB/s.
    assert found.exposed_seconds == pytest.approx(0.458752e-3)


def test_between_nodes_the_slowest_link_decides() -> None:
    # 8 nodes of 8: each GPU carries an eighth of 80 MB in a ring of 8, 1.75 × 10 MB at 10 GB/s;
    # inside a node 1.75 × 80 MB at 100 GB/s is quicker, and slower once NVLink is at 50 GB/s.
    assert all_reduce_seconds(80e6, 64, 8, PLAIN) == pytest.approx(1.75e-3)
    slow = replace(PLAIN, nvlink_gbytes=50)
    assert all_reduce_seconds(80e6, 64, 8, slow) == pytest.approx(2.8e-3)
    assert all_reduce_seconds(80e6, 8, 8, slow) == pytest.approx(2.8e-3)
    # GPUs alone in their nodes: 2 × 63/64 of everything over the network.
    assert all_reduce_seconds(80e6, 64, 1, PLAIN) == pytest.approx(15.75e-3)


def test_a_pass_takes_at_least_as_long_as_launching_it() -> None:
    slow = replace(PLAIN, step_overhead_ms=30)
    # 8 × 32 images at 10,000 a second would take 25.6 ms; each of the 8 passes is launched.
    assert estimate(SN, 10_000.0, 1, Plan(), slow).compute_seconds == pytest.approx(0.240)
    # ⌈50,000 / 32⌉ = 1563 forward passes at a third of 30 ms, against 1.67 s of images.
    assert estimate(SN, 10_000.0, 1, Plan(), slow).evaluation_seconds == pytest.approx(15.63)
    counted = replace(PLAIN, launch_us=10)
    assert estimate(RESNET, 1e6, 64, Plan(), counted).compute_seconds == pytest.approx(4.61e-3)


def test_an_assumed_floor_does_not_overrule_a_measured_pass() -> None:
    # 32 images at 1000 a second are one pass of 32 ms as timed; 6,450 × 10 µs are assumed.
    guessed = estimate(SN, 1000.0, 8, Plan(), FROM_ABOVE)
    assert guessed.compute_seconds == pytest.approx(64.5e-3)
    assert estimate(SN, 1000.0, 8, Plan(), BESIDE_MEASURED).compute_seconds == pytest.approx(32e-3)
    # Fewer images than were timed may still wait for launching: 64 at 20,000 a second, 461 × 10 µs.
    quick = estimate(RESNET, 20_000.0, 8, Plan(), BESIDE_MEASURED)
    assert quick.compute_seconds == pytest.approx(4.61e-3)


@pytest.mark.parametrize(
    ("row", "gpus", "plan", "expected"),
    [
        (RESNET, 1, Plan(), (4, 128)),
        (RESNET, 2, Plan(), (2, 128)),
        (RESNET, 8, Plan(), (1, 64)),
        (RESNET, 64, Plan(), (1, 8)),
        (SN, 1, Plan(), (8, 32)),
        (SN, 64, Plan(), (1, 4)),
        (RESNET, 4, Plan(global_batch=516), (3, 43)),
        (RESNET, 64, Plan(global_batch=8192), (1, 128)),
    ],
)
def test_a_step_is_shared_evenly(
    row: PaperRow, gpus: int, plan: Plan, expected: tuple[int, int]
) -> None:
    split = pieces(row, gpus, plan)
    assert (split.passes, split.images) == expected


def test_more_gpus_are_quicker_and_dearer_and_faster_links_quicker() -> None:
    for row in ROWS:
        speed = ROOFLINE[row.arch, row.norm]
        runs = [estimate(row, speed, n, Plan(), FROM_BELOW) for n in (1, 2, 4, 8, 16, 32, 64)]
        assert all(more.hours < fewer.hours for fewer, more in pairwise(runs))
        assert all(more.gpu_hours > fewer.gpu_hours for fewer, more in pairwise(runs))
        quick = replace(FROM_BELOW, nvlink_gbytes=1e6, network_gbytes=1e6)
        assert estimate(row, speed, 64, Plan(), quick).hours < runs[-1].hours
        assert estimate(row, 2 * speed, 64, Plan(), FROM_BELOW).hours < runs[-1].hours
        assert estimate(row, speed, 64, Plan(), FROM_ABOVE).hours > runs[-1].hours


# ---------------------------------------------------------------------- what it is fed with


@pytest.fixture
def one_process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
def test_ddp_sends_four_bytes_per_parameter() -> None:
    sent: list[int] = []

    def count(
        state: object,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[torch.Tensor]:
        sent.append(bucket.buffer().numel() * bucket.buffer().element_size())
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    replica = DistributedDataParallel(
        create_model("mobilenetv2", norm="an"), gradient_as_bucket_view=True
    )
    replica.register_comm_hook(None, count)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # gradients stay float32
        logits = replica(torch.randn(2, 3, 32, 32))
    logits.float().sum().backward()
    assert sum(sent) == BYTES_PER_GRADIENT * parameters("mobilenetv2", "an")


class _Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("arch", "norm"), [("resnet50", "bn"), ("resnet50", "sn")])
def test_operations_are_those_that_torch_dispatches(arch: str, norm: str) -> None:
    with torch.device("meta"):
        model = create_model(arch, norm=norm)
        images, labels = torch.randn(2, 3, 224, 224), torch.zeros(2, dtype=torch.long)
    with _Operations() as operations:
        torch.nn.functional.cross_entropy(model(images), labels).backward()
    # Versions of torch differ in a few.
    assert operations.count == pytest.approx(OPERATIONS[arch, norm], rel=0.05)


def test_every_row_has_its_own_figures() -> None:
    for row in ROWS:
        key = (row.arch, row.norm)
        config = compose_config(f"+experiment=table1/{row.arch}_{row.norm}", "data.root=/data")
        text = (ROOT / f"configs/experiment/table1/{row.arch}_{row.norm}.yaml").read_text()
        assert f"{ROOFLINE[key]:,.0f} img/s" in text
        assert parameters(*key) == EXPECTED[row.arch][row.norm]["parameters"]
        assert OPERATIONS[key] > 0
        assert paper_batch(row.norm)[1] == config.batch_size
        assert config.data.num_train_images == TRAIN_IMAGES
        assert config.data.num_val_images == VAL_IMAGES


def test_training_alone_costs_what_the_guide_says() -> None:
    """101 to 239 H100 hours: the images of 120 epochs at the two speeds, and nothing else."""
    for case, expected in zip(bounds(), (101, 239), strict=True):
        images = 120 * TRAIN_IMAGES
        hours = sum(images / case.speeds[row.arch, row.norm] / 3600 for row in ROWS)
        assert hours == pytest.approx(expected, rel=0.005)


# ---------------------------------------------------------------------- the command


def test_the_page_shows_what_the_command_prints(tmp_path: Path) -> None:
    target = tmp_path / "scaling.md"
    printed = run_script("scaling", "--markdown", str(target))
    assert printed.returncode == 0
    assert target.read_text() == printed.stdout
    assert printed.stdout.strip() in (ROOT / "docs" / "scaling.md").read_text()


def write_speeds(path: Path, machine: str = "NVIDIA H100 80GB HBM3", **speeds: float) -> str:
    rows = [
        {"arch": key.split("_")[0], "norm": key.split("_")[1], "images per second": value}
        for key, value in speeds.items()
    ]
    record = {"command": "benchmark.py model", "machine": machine, "training": rows}
    path.write_text(json.dumps(record))
    return str(path)


def cells(finished: Finished, label: str) -> list[str]:
    line = next(line for line in finished.stdout.splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_measured_rows_replace_the_bounds_and_the_others_are_not_guessed(tmp_path: Path) -> None:
    one = write_speeds(tmp_path / "one.json", resnet50_bn=3000.0, resnet50_an=2900.0)
    two = write_speeds(tmp_path / "two.json", machine="AMD EPYC", resnet101_bn=1500.0)
    finished = run_script("scaling", "--images-per-second", one, two, "--gpus", "8")
    hours = estimate(RESNET, 3000.0, 8, Plan(), BESIDE_MEASURED)
    expected = ["ResNet-50-BN", f"{hours.hours:.3g}", f"{hours.gpu_hours:.3g}"]
    assert cells(finished, "ResNet-50-BN") == expected
    assert cells(finished, "ResNet-50-GN") == ["ResNet-50-GN", "not measured", "not measured"]
    assert cells(finished, "all eleven")[1] == "not measured"
    assert "- NVIDIA H100 80GB HBM3: `benchmark.py model`\n" in finished.stdout
    assert "- AMD EPYC: `benchmark.py model` **Not an H100.**" in finished.stdout
    assert "no step was timed" not in finished.stdout


def test_options_reach_the_formula() -> None:
    arguments = ("--gpus", "16", "--global-batch", "2048", "--epochs", "30", "--no-eval")
    links = ("--nvlink-gbytes", "100", "--network-gbytes", "1", "--step-overhead-ms", "5")
    finished = run_script("scaling", *arguments, *links, "--gpus-per-node", "4")
    assert finished.returncode == 0
    plan = Plan(epochs=30, global_batch=2048, gpus_per_node=4, evaluate=False)
    ends = [
        estimate(
            RESNET,
            case.speeds["resnet50", "bn"],
            16,
            plan,
            replace(case.machine, nvlink_gbytes=100, network_gbytes=1, step_overhead_ms=5),
        ).hours
        for case in bounds()
    ]
    assert cells(finished, "ResNet-50-BN")[1] == f"{ends[0]:.3g} – {ends[1]:.3g}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus 0: it must be at least 1."),
        (["--gpus", "3"], "--gpus 3: ResNet-50-BN's global batch of 512 images is not divisible"),
        (["--gpus", "12"], "--gpus 12 does not fill nodes of --gpus-per-node 8"),
        (["--gpus", "512"], "--gpus 512: ResNet-50-SN (8,32)'s global batch of 256 images"),
        (["--global-batch", "100"], "--gpus 8: ResNet-50-BN's global batch of 100 images"),
        (["--global-batch", "2000000"], "--global-batch 2000000 is more than ImageNet's"),
        (["--epochs", "0"], "--epochs 0: it must be at least 1."),
        (["--network-gbytes", "0"], "--network-gbytes 0: it must be above 0."),
        (["--nvlink-gbytes", "nan"], "--nvlink-gbytes nan: it must be above 0."),
        (["--step-overhead-ms", "-1"], "--step-overhead-ms -1: it must be 0 or more."),
        (["--images-per-second", "nowhere.json"], "nowhere.json: No such file"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], message: str) -> None:
    finished = run_script("scaling", *arguments)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert finished.stdout == ""


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        "images per second",
        '{"training": [], "machine": "H100", "command": "c"}',
        '{"each attentive layer": [{"arch": "resnet50"}], "machine": "H100", "command": "c"}',
        '{"training": [{"arch": "resnet50", "norm": "bn", "images per second": 0}],'
        ' "machine": "H100", "command": "c"}',
    ],
)
def test_a_file_of_another_kind_is_refused(content: str, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.json"
    foreign.write_text(content)
    finished = run_script("scaling", "--images-per-second", str(foreign))
    assert finished.returncode == 2
    assert f"--images-per-second {foreign}" in finished.stderr
    assert len(finished.stderr.strip().splitlines()) <= 3


def test_a_row_in_two_files_is_refused(tmp_path: Path) -> None:
    files = [write_speeds(tmp_path / f"{n}.json", resnet50_bn=3000.0 + n) for n in range(2)]
    finished = run_script("scaling", "--images-per-second", *files)
    assert finished.returncode == 2
    assert "resnet50_bn is in two files" in finished.stderr


def test_a_plan_without_gpus_is_refused_in_python_too() -> None:
    with pytest.raises(UserError, match="--gpus-per-node 0"):
        Plan(gpus_per_node=0)
