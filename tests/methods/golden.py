"""`python tests/methods/golden.py` writes golden.json: the first losses of every trained method in the small setting.

Do so after a change that is to change them, or for a new method, and look at the difference. With `--spread` it prints
how far the losses differ between vector units, BLAS code paths and numbers of threads, and writes nothing.

The student begins a small way from the base. Where it begins as the base itself, a KL term's gradient is rounding noise
on every weight that retain rows alone reach, and Adam brings noise to the size of a real gradient: there the losses
differed by up to 1.5e-2 between vector units, here by 5.4e-5.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from forgetting import begin, cases, changed, steps

from duet_unlearn.methods.base import Method

CURVES = Path(__file__).with_suffix(".json")
NUM_STEPS = 5
PROCESSORS: tuple[dict[str, str], ...] = (
    {},
    {"OMP_NUM_THREADS": "2"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"MKL_CBWR": "AVX2"},
    {"MKL_CBWR": "COMPATIBLE"},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
    {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
    {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "2"},
)
"""Variables by which one machine computes as others do."""


def curve(method: Method, directory: Path) -> list[float]:
    """The losses of the first steps."""
    return [log.loss for log in steps(method, changed(begin(method)), directory, num_steps=NUM_STEPS)]


def curves() -> dict[str, list[float]]:
    found = {}
    for name, method in cases().items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = curve(method, Path(folder))
    return found


def print_spread() -> None:
    """The largest difference of a method's losses between two of ``PROCESSORS``, relative to the largest of them."""
    runs = []
    for variables in PROCESSORS:
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
        out = subprocess.run([sys.executable, __file__, "--print"], env=environment, stdout=subprocess.PIPE, check=True)
        runs.append(json.loads(out.stdout))
        print(f"done: {variables}", file=sys.stderr)
    spreads = {}
    for name in runs[0]:
        steps_of = zip(*(run[name] for run in runs), strict=True)
        spreads[name] = max((max(losses) - min(losses)) / max(map(abs, losses)) for losses in steps_of)
    for name, spread in sorted(spreads.items(), key=lambda one: -one[1]):
        print(f"{spread:.1e}  {name}")


if __name__ == "__main__":
    if "--spread" in sys.argv:
        print_spread()
    elif "--print" in sys.argv:
        print(json.dumps(curves()))
    else:
        written = {name: [float(f"{loss:.7g}") for loss in losses] for name, losses in curves().items()}
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(losses)}" for name, losses in written.items())
        CURVES.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
