"""Make a language model forget a concept, and measure what was forgotten, kept and can be brought back.

``unlearn``, ``probe``, ``evaluate`` and ``load_recipe`` are the whole Python interface; they are imported on first
use, so that ``import duet_unlearn`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_LAZY = {
    "unlearn": "api",
    "probe": "api",
    "evaluate": "api",
    "load_recipe": "config.reading",
    "extract_queries": "queries",
    "UserError": "errors",
}
__all__ = ["UserError", "__version__", "evaluate", "extract_queries", "load_recipe", "probe", "unlearn"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
