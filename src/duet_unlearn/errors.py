"""The one error that users see, and the two helpers that word it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType


class UserError(Exception):
    """Something the user can put right: what is wrong and where, then what to do. Printed without a traceback."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message}\n{hint}")
        self.message = message
        self.hint = hint


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option that looks most like `name`, or None where nothing is close."""
    found = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return found[0] if found else None


def require(package: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(f"this needs the package {package}", f'pip install "duet-unlearn[{extra}]"') from error
