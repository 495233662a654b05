"""Table 1's experiments and the recipes compose to what their files say."""

import itertools
import re
from typing import Any

import pytest
import torch

from attnorm.config import choices, config_directory
from attnorm.errors import UserError
from attnorm.models.build import build_model
from attnorm.reporting.table1.paper import ROWS, PaperRow
from tests.conftest import compose_config, composed


def experiment(row: PaperRow) -> Any:
    return composed(f"+experiment=table1/{row.arch}_{row.norm}")


def with_recipe(recipe: str, arch: str = "resnet50") -> Any:
    return composed(f"recipe={recipe}", f"arch={arch}", "norm=an", "data=imagenet")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.label)
def test_each_row_is_one_experiment_with_the_papers_recipe(row: PaperRow) -> None:
    config = experiment(row)
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
    batch = int(processes[1]) * experiment(row).batch_size
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


CLASSIFICATION = [name for name in choices("recipe") if not name.startswith("coco")]
ARCHITECTURES = ("resnet50", "resnet101", "densenet161", "mobilenetv2")


def recipes_and_networks() -> list[Any]:
    """Fast are all recipes for a ResNet-50, one of each kind elsewhere, and a network's own."""
    found = []
    for recipe, arch in itertools.product(CLASSIFICATION, ARCHITECTURES):
        fast = arch == "resnet50" or recipe in ("ffcv16", "rsb_a1", "tv_v2")
        fast = fast or recipe.endswith(arch) or f"{recipe}_{arch}" in CLASSIFICATION
        found.append(pytest.param(recipe, arch, marks=() if fast else (pytest.mark.slow,)))
    return found


@pytest.mark.parametrize(("recipe", "arch"), recipes_and_networks())
def test_each_recipe_composes_with_each_network_and_normalizer(recipe: str, arch: str) -> None:
    if f"{recipe}_{arch}" in CLASSIFICATION:
        with pytest.raises(UserError, match=f"recipe={recipe}_{arch}"):
            compose_config(f"recipe={recipe}", f"arch={arch}")
        recipe = f"{recipe}_{arch}"
    # A recipe touches the network by timm's options alone, which no normalizer hears of.
    config = with_recipe(recipe, arch)
    assert config.recipe_name == recipe
    with torch.device("meta"):
        build_model(config.arch, config.norm, 1000)


# Of the sources that the files name: what a run must have been told.
SETTINGS: dict[str, dict[str, Any]] = {
    "an_advanced": {
        **{"epochs": 200, "optim.name": "sgd", "optim.lr": 0.1, "optim.reference_batch": 256},
        **{"optim.weight_decay": 1e-4, "optim.norm_weight_decay": True},
        **{"schedule.name": "cosine", "schedule.warmup_epochs": 5},
        **{"train.label_smoothing": 0.1, "augment.mixup": 0.2, "augment.cutmix": 0},
    },
    "ffcv16": {
        **{"epochs": 16, "batch_size": 512, "optim.lr": 1.7, "optim.reference_batch": 4096},
        **{"optim.norm_weight_decay": False, "optim.weight_decay": 1e-4, "schedule.name": "linear"},
        **{"data.train_size": 160, "data.final_train_size": 192, "data.image_size": 256},
        **{"data.flip_tta": True, "train.label_smoothing": 0.1, "schedule.warmup_epochs": 2},
        "arch.timm_options": {"aa_layer": "blurpool"},
    },
    "ffcv88": {"epochs": 88, "optim.lr": 1.7, "data.train_size": 160, "schedule.name": "linear"},
    "rsb_a1": {
        **{"epochs": 600, "optim.lr": 5e-3, "optim.weight_decay": 0.01, "augment.mixup": 0.2},
        **{"augment.repeats": 3, "augment.policy": "rand-m7-n2-mstd0.5-inc1"},
        "arch.timm_options": {"drop_path_rate": 0.05},
    },
    "rsb_a2": {"epochs": 300, "optim.lr": 5e-3, "optim.weight_decay": 0.02, "augment.mixup": 0.1},
    "rsb_a3": {
        **{"epochs": 100, "optim.name": "lamb", "optim.lr": 8e-3, "optim.reference_batch": 2048},
        **{"optim.weight_decay": 0.02, "optim.norm_weight_decay": False},
        **{"optim.bias_weight_decay": False, "train.loss": "binary_cross_entropy"},
        **{"data.train_size": 160, "data.image_size": 224, "data.resize_size": 236},
        **{"data.interpolation": "bicubic", "augment.policy": "rand-m6-n2-mstd0.5-inc1"},
        **{"augment.mixup": 0.1, "augment.cutmix": 1.0, "augment.repeats": 1},
        **{"schedule.warmup_epochs": 5, "schedule.final_lr": 1e-6, "train.label_smoothing": 0},
    },
    "tv_v1": {
        **{"epochs": 90, "optim.lr": 0.1, "optim.reference_batch": 256, "batch_size": 32},
        **{"schedule.milestones": [30, 60], "schedule.gamma": 0.1, "optim.weight_decay": 1e-4},
    },
    "tv_v2": {
        **{"epochs": 600, "optim.lr": 0.5, "optim.reference_batch": 1024, "data.train_size": 176},
        **{"data.resize_size": 232, "optim.weight_decay": 2e-5, "optim.norm_weight_decay": False},
        **{"augment.policy": "trivial_augment_wide", "augment.erasing": 0.1, "augment.repeats": 4},
        **{"augment.mixup": 0.2, "augment.cutmix": 1.0, "train.label_smoothing": 0.1},
        **{"ema.every": 32, "schedule.warmup_start": 0.01},
    },
}


@pytest.mark.parametrize("recipe", SETTINGS)
def test_a_recipe_says_what_its_source_says(recipe: str) -> None:
    config = with_recipe(recipe)
    for key, expected in SETTINGS[recipe].items():
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        assert value == expected, key


def test_the_average_of_torchvisions_recipe_is_what_its_script_computes() -> None:
    config = with_recipe("tv_v2")
    adjusted = (1 - 0.99998) * 8 * config.batch_size * 32 / config.epochs
    assert config.ema.decay == pytest.approx(1 - adjusted, abs=1e-6)


@pytest.mark.parametrize("epochs", [16, 24, 32, 40, 56, 88])
def test_ffcvs_images_grow_at_its_epochs(epochs: int) -> None:
    ramps = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}
    config = with_recipe(f"ffcv{epochs}")
    assert config.epochs == epochs
    ramp = [share * epochs for share in config.data.train_size_ramp]
    assert ramp == pytest.approx(ramps[epochs])


def test_each_recipe_names_its_source_and_what_differs() -> None:
    for recipe in CLASSIFICATION:
        text = (config_directory() / "recipe" / f"{recipe}.yaml").read_text()
        head = text[: text.index("\nepochs:")] if "\nepochs:" in text else text
        assert head.count("\n#") >= 1, recipe
        if recipe in ("an_advanced", "ffcv16", "rsb_a1", "rsb_a2", "rsb_a3", "tv_v2"):
            assert "Differs" in head, recipe
