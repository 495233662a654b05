"""Table 1's experiments and the recipes compose to what their files say."""

import re

import pytest

from attnorm.config import config_directory
from attnorm.errors import UserError
from attnorm.reporting.table1.paper import ROWS, PaperRow
from tests.conftest import compose_config


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.label)
def test_each_row_is_one_experiment_with_the_papers_recipe(row: PaperRow) -> None:
    config = compose_config(f"+experiment=table1/{row.arch}_{row.norm}")
    assert (config.arch.name, config.norm.name, config.data.name) == (
        row.arch,
        row.norm,
        "imagenet",
    )
    assert (config.epochs, config.optim.lr, config.optim.momentum) == (120, 0.2, 0.9)
    assert (config.optim.weight_decay, config.optim.norm_weight_decay) == (1e-4, True)
    assert (config.schedule.name, config.schedule.warmup_epochs) == ("cosine", 0)
    assert config.batch_size == (32 if row.norm == "sn" else 128)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.label)
def test_each_experiment_opens_with_the_papers_figures_and_command(row: PaperRow) -> None:
    name = f"table1/{row.arch}_{row.norm}"
    text = (config_directory() / "experiment" / f"{name}.yaml").read_text()
    head = text[: text.index("defaults:")]
    printed = row.printed
    for figure in (
        f"{printed.paper_parameters_m} M parameters",
        f"top-1 error {printed.paper_top1_error} %",
        f"top-5 error {printed.paper_top5_error} %",
        f"train.py +experiment={name}",
        "Recipe: the paper's",
    ):
        assert figure in head
    processes = re.search(r"--nproc-per-node=(\d)", head)
    assert processes is not None
    batch = int(processes[1]) * compose_config(f"+experiment={name}").batch_size
    assert batch == (256 if row.norm == "sn" else 512)


def test_the_released_recipe_warms_up_and_mobilenet_has_its_own() -> None:
    resnet = compose_config("+experiment=table1/resnet50_an", "recipe=released")
    assert (resnet.epochs, resnet.optim.lr, resnet.schedule.warmup_epochs) == (120, 0.2, 5)
    assert resnet.optim.weight_decay == 1e-4
    for overrides in (
        ["arch=mobilenetv2", "norm=an"],
        ["+experiment=table1/mobilenetv2_an"],
    ):
        mobile = compose_config(*overrides, "recipe=released_mobilenetv2")
        assert (mobile.epochs, mobile.optim.lr, mobile.schedule.warmup_epochs) == (150, 0.1, 5)
        assert mobile.optim.weight_decay == 4e-5
        with pytest.raises(UserError, match="recipe=released_mobilenetv2"):
            compose_config(*overrides, "recipe=released")


def test_what_a_person_sets_wins_over_a_recipe() -> None:
    config = compose_config("recipe=released", "epochs=9", "optim.lr=0.7")
    assert (config.epochs, config.optim.lr) == (9, 0.7)


def test_a_timm_architecture_gives_its_name_to_the_run() -> None:
    config = compose_config("arch=timm", "arch.timm_model=regnety_032", "norm=gn")
    assert config.name == "regnety_032_gn_digits"
