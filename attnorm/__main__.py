"""The command ``attnorm``, or ``python -m attnorm``: what train.py, eval.py and scripts/ call."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn, TextIO

from attnorm import __version__, interpreter

# By name: the module of attnorm.commands, the extra that it needs, and what it is for.
COMMANDS = {
    "train": ("train", "train", "train a model, or go on with a run"),
    "eval": ("evaluate", "train", "evaluate a checkpoint"),
    "predict": ("predict", "train,report", "classify images with a checkpoint"),
    "table1": ("table1", "train,report", "the paper's Table 1 beside your runs"),
    "run-table1": ("run_table1", "train,report", "train every row of Table 1, and report"),
    "run-table": ("run_table", "train,report", "train any grid of runs, and compare with BN"),
    "responses": ("responses", "train,report", "the paper's Figure 2 for one or two checkpoints"),
    "prepare-imagenet": ("prepare_imagenet", "train", "ImageNet from the official archives"),
    "make-shards": ("make_shards", "train", "pack an image folder into shards"),
    "convert-checkpoint": ("convert_checkpoint", "train", "the authors' checkpoints, into ours"),
    "export": ("export", "train", "a model to share: a folder for timm, ONNX, torch.export"),
    "export-safetensors": ("export_safetensors", "train", "a run's best weights, for others"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: that of the command, or 2 if there is no such command."""
    return _command(sys.argv[1:] if arguments is None else arguments)()


def run(*arguments: str) -> NoReturn:
    """The command of a process of its own, which ends with it."""
    interpreter.execute(_command(arguments or sys.argv[1:]))


def _command(arguments: Sequence[str]) -> Callable[[], int]:
    """With all that it needs imported."""
    if not arguments or arguments[0] in ("-h", "--help"):
        return partial(_say, sys.stdout, _help(), 0)
    name, *rest = arguments
    if name == "--version":
        return partial(_say, sys.stdout, f"{__version__}\n", 0)
    if name not in COMMANDS:
        unknown = f"error: {name!r} is not a command: use {', '.join(COMMANDS)}.\n"
        return partial(_say, sys.stderr, unknown, 2)
    module, extra, _ = COMMANDS[name]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while libraries are imported: no traceback
    try:
        with interpreter.without_collector():
            command = importlib.import_module(f"attnorm.commands.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "attnorm":
            raise
        missing = (
            f"error: attnorm {name} needs {error.name}, which is not installed:"
            f" pip install 'attnorm[{extra}]'.\n"
        )
        return partial(_say, sys.stderr, missing, 2)
    return partial(command.main, rest)


def _say(stream: TextIO, text: str, status: int) -> int:
    stream.write(text)
    return status


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{about}" for name, (_, _, about) in COMMANDS.items()]
    return (
        "attnorm COMMAND [arguments]     train and compare normalizers\n\n"
        + "\n".join(lines)
        + "\n\nattnorm COMMAND --help says what each takes.\n"
    )


if __name__ == "__main__":
    run()
