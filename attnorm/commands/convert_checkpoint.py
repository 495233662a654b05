"""Turn a checkpoint that the paper's authors released into one that eval.py and train.py read.

  python scripts/convert_checkpoint.py SOURCE TARGET --arch resnet50 [key=value ...]

The result evaluates like any run's best.pt (eval.py checkpoint=TARGET data.root=...) and starts a
fine-tuning with arch.pretrained=TARGET norm.attention=released. Every tensor is compared with its
source after the result has been written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from timm.data import ImageNetInfo

from attnorm import config as schema
from attnorm.errors import UserError, exit_on_user_error
from attnorm.models.authors_release import check_same, load_released
from attnorm.models.build import build_model
from attnorm.models.complexity import count_parameters
from attnorm.models.pretrained import read_weights
from attnorm.training import checkpoint


def convert(source: Path, target: Path, arch: str, overrides: list[str]) -> str:
    """Write ``target`` and say what it holds."""
    if target.exists():
        raise UserError(f"{target} exists: choose another name or remove it.")
    fixed = [f"arch={arch}", "norm=an", "norm.attention=released", "data=imagenet"]
    config = schema.compose([*fixed, *overrides])
    released = read_weights(str(source), key="SOURCE")
    class_names = ImageNetInfo("imagenet-1k").label_names()
    model = build_model(config.arch, config.norm, len(class_names), load_pretrained=False)
    tensors = load_released(model, released, config.arch.name)
    state = {
        "model": model.state_dict(),
        "config": schema.to_container(config),
        "class_names": class_names,
        "epoch": 0,
        "step": 0,
    }
    checkpoint.save_checkpoint(state, target)
    check_same(released, checkpoint.load_checkpoint(target)["model"], config.arch.name)
    parameters = f"{count_parameters(model):,} parameters"
    return f"{target}: {tensors} tensors, each equal to its source; {parameters}"


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after a mistake."""
    parser = argparse.ArgumentParser(
        "convert_checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument(
        "--arch", required=True, help="resnet50, resnet101, mobilenetv2, densenet161"
    )
    parser.add_argument("overrides", nargs="*", help="of the config: norm.num_components=10")
    given = parser.parse_intermixed_args(arguments)
    with exit_on_user_error():
        sys.stdout.write(convert(given.source, given.target, given.arch, given.overrides) + "\n")
    return 0
