"""The one error that users see, and the helper that words it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


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


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Around the import of an optional package: where it is missing, `what` is not possible, and `extra` is named.

    Raises:
        UserError: the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{what} needs the package {error.name}", f"install it with: pip install 'duet-unlearn[{extra}]'"
        ) from error
