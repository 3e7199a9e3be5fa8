"""Types of settings that have a bound; it is checked when a recipe is read."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Lt(1)]
PositiveShare = Annotated[float, Gt(0), Le(1)]
Whole = Annotated[int, Ge(0)]
Amount = Annotated[float, Ge(0)]


def named(settings: object, *fields: str) -> None:
    """Refuse a list of settings that names nothing.

    Raises:
        ValueError: one of the fields is empty.
    """
    for field in fields:
        if not getattr(settings, field):
            raise ValueError(f"{field} is empty; name at least one")
