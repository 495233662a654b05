"""Train a model with a normalizer of your choice.

  attnorm train [group=option ...] [key=value ...]          or python train.py, with the same
  torchrun --standalone --nproc-per-node=8 train.py [the same]

Examples

  # ResNet-50 with Attentive Normalization on the built-in digits, 5 epochs on a CPU
  python train.py epochs=5 batch_size=64

  # The paper's ResNet-50-AN on ImageNet, 8 GPUs, global batch 8 x 64 = 512
  torchrun --standalone --nproc-per-node=8 train.py arch=resnet50 norm=an \\
      data=imagenet data.root=/data/imagenet batch_size=64

  # Your own folder of images, plain batch norm, bfloat16, K = 5 for comparison
  python train.py data=folder data.root=/data/birds norm=bn precision=bf16
  python train.py data=folder data.root=/data/birds norm=an norm.num_components=5 precision=bf16

A run's folder is runs/NAME unless hydra.run.dir= says otherwise; starting it again continues it.
  --cfg job   print the config that a command line makes, and stop
  --help      all groups and keys (with the values that the rest of the command line gives them)
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from omegaconf import OmegaConf

from attnorm import config as schema
from attnorm.errors import UserError, exit_on_user_error
from attnorm.run.train import run
from attnorm.training.interrupts import EXIT_INTERRUPTED, RunInterrupted

logger = logging.getLogger("attnorm.train")


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 finished, 2 a mistake, 75 stopped by a signal with its checkpoint written."""
    with exit_on_user_error():
        shown, overrides = _split(list(arguments))
        if shown == "help":
            sys.stdout.write(_help(overrides))
            return 0
        if shown == "config":
            sys.stdout.write(_yaml(overrides))
            return 0
        config, run_dir = schema.compose_run(overrides)
        try:
            run(config, run_dir)
        except RunInterrupted as interrupted:
            logger.info("Stopped by %s; the same command continues the run.", interrupted)
            return EXIT_INTERRUPTED
    return 0


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    """What to show instead of training, if anything, and the overrides.

    Raises:
        UserError: a flag that there is not.
    """
    shown, overrides = "", []
    while arguments:
        argument = arguments.pop(0)
        if argument in ("-h", "--help"):
            shown = "help"
        elif argument in ("-c", "--cfg", "--cfg=job"):
            what = "job" if "=" in argument else arguments.pop(0) if arguments else ""
            if what != "job":
                raise UserError(f"--cfg {what} is not known: use --cfg job.")
            shown = "config"
        elif argument in ("-m", "--multirun"):
            raise UserError(
                "--multirun is not supported: its runs could neither use torchrun nor be continued."
                "\nUse scripts/run_table.py norm=bn,an, which queues, continues and reports."
            )
        elif argument.startswith("-"):
            raise UserError(f"{argument} is not an option: use --help, --cfg job or key=value.")
        else:
            overrides.append(argument)
    return shown, overrides


def _yaml(overrides: Sequence[str]) -> str:
    composed = schema.compose_node(overrides)
    del composed["hydra"]
    return OmegaConf.to_yaml(composed)


def _help(overrides: Sequence[str]) -> str:
    root = schema.config_directory()
    groups = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_dir() and any(path.glob("*.yaml"))
    )
    listed = "\n".join(f"{group}: {', '.join(schema.choices(group))}" for group in groups)
    return (
        f"{__doc__}\nGroups (group=option)\n\n{listed}\n\n"
        "Configuration (key=value); this is what your command line would run\n\n"
        f"{_yaml(overrides)}"
    )
