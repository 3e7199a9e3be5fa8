"""`python tests/methods/golden.py` writes golden.json: the first losses of every trained method in the small setting.

Do so after a change that is to change them, or for a new method, and look at the difference.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from forgetting import begin, cases, steps

from duet_unlearn.methods.base import Method

CURVES = Path(__file__).with_suffix(".json")
NUM_STEPS = 5


def curve(method: Method, directory: Path) -> list[float]:
    """The losses of the first steps."""
    return [log.loss for log in steps(method, begin(method), directory, num_steps=NUM_STEPS)]


if __name__ == "__main__":
    found = {}
    for name, method in cases().items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = [float(f"{loss:.7g}") for loss in curve(method, Path(folder))]
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(losses)}" for name, losses in found.items())
    CURVES.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
