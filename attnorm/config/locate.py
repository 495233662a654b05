"""From an import path to the object that it names."""

from __future__ import annotations

import importlib
from typing import Any

from attnorm.errors import UserError


def locate(path: str, key: str) -> Any:
    """The object at ``path``, such as ``torch.nn.BatchNorm2d``.

    Args:
        key: the config key that names it, for the message.

    Raises:
        UserError: there is no such module, or nothing of that name in it.
    """
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            # A parent that is missing, not something that the module itself wants to import.
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                continue
            raise UserError(f"{key}={path} cannot be imported: {error}") from error
        except ImportError as error:
            raise UserError(f"{key}={path} cannot be imported: {error}") from error
        for attribute in parts[length:]:
            if not hasattr(found, attribute):
                raise UserError(f"{key}={path} cannot be imported: {name} has no {attribute}.")
            found = getattr(found, attribute)
        return found
    raise UserError(
        f"{key}={path} cannot be imported: there is no module {'.'.join(parts[:-1]) or path}."
    )
