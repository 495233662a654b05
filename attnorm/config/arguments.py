"""Arguments of commands that have keys of their own beside the config's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnorm.config.groups import explain
from attnorm.errors import UserError

T = TypeVar("T")


def read_arguments(
    arguments: Sequence[str],
    schema: type[T],
    keys: Sequence[str],
    command: str,
    positional: bool = False,
) -> tuple[T, list[str], list[str]]:
    """Sort arguments into the command's own, overrides of the config, and the rest.

    Args:
        schema: a dataclass of the command's own keys. Texts are taken as they are typed; other
            values are read in Hydra's grammar, so that lists and null are what they look like. A
            list collects what its key is given, once or several times.
        keys: top-level keys of the config that may be overridden.
        command: its name, for messages.
        positional: whether arguments without ``=`` (and files whose names have one) may come.

    Raises:
        UserError: an unknown key, a missing or impossible value, or an argument that is none.
    """
    own = {spec.name: str(spec.type) for spec in fields(schema)}  # type: ignore[arg-type]
    typed: dict[str, Any] = {}
    overrides: list[str] = []
    rest: list[str] = []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if positional and (not separator or Path(argument).is_file()):
            rest.append(argument)
        elif not separator:
            raise UserError(f"{argument!r} is not key=value: see {command} --help.")
        elif key in own and own[key].startswith("list[str]"):
            several = _parsed(argument) if value.startswith("[") else [value]
            typed.setdefault(key, []).extend(several)
        elif key in own:
            typed[key] = value if own[key].startswith("str") else _parsed(argument)
        elif key.lstrip("+").split(".")[0] in keys:
            overrides.append(argument)
        else:
            raise UserError(
                f"{key} is not a key of {command}: use {', '.join((*own, *keys))}"
                " (the model's own config is in the checkpoint)."
            )
    return _instantiate(schema, typed), overrides, rest


def _parsed(argument: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(argument).value()
    except HydraException as error:
        raise UserError(f"{argument} cannot be read: {str(error).splitlines()[0]}") from error


def _instantiate(schema: type[T], values: dict[str, Any]) -> T:
    try:
        node = OmegaConf.merge(OmegaConf.structured(schema), values)
        missing = [str(key) for key in node if OmegaConf.is_missing(node, key)]
        if missing:
            raise UserError(f"{missing[0]} is not set: pass {missing[0]}=VALUE.")
        instance = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error
    assert isinstance(instance, schema)
    return instance


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether a command should explain itself instead of working."""
    return not arguments or arguments[0] in ("-h", "--help")


def show_help(text: str) -> int:
    """Print a command's help; returns its exit status."""
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
    return 0
