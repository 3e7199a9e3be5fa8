"""`examples/add_a_method.md` works as it is written: a copy of the package gets the method, runs it, and tests it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "examples" / "add_a_method.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.M | re.S))
"""Path -> what the page says stands in it."""
DIFFS = re.findall(r"^```diff\n(.*?)^```$", PAGE, re.M | re.S)


def followed(folder: Path) -> dict[str, str]:
    """Do in a copy of the package what the page says; the environment in which Python finds that copy."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    register = folder / "src/duet_unlearn/config/recipe.py"
    for diff in DIFFS:
        lines = [(line[:1], line[1:]) for line in diff.splitlines()]
        before = "\n".join(line for sign, line in lines if sign != "+")
        after = "\n".join(line for _, line in lines)
        text = register.read_text(encoding="utf-8")
        assert text.count(before) == 1, before
        register.write_text(text.replace(before, after), encoding="utf-8")
    return os.environ | {"PYTHONPATH": str(folder / "src")}


def test_a_method_is_added_as_the_page_says(tmp_path: Path) -> None:
    environment = followed(tmp_path)
    [command] = re.findall(r"^duet (run .*)$", PAGE, re.M)

    def python(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *args], cwd=tmp_path, env=environment, capture_output=True, text=True)

    tested = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert tested.returncode == 0, tested.stdout
    done = python("-m", "duet_unlearn", *command.split())
    assert done.returncode == 0, done.stderr
    losses = [json.loads(line)["loss"] for line in (tmp_path / "runs/ihl/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    listed = python("-m", "duet_unlearn", "list", "methods")
    assert re.search(r"^ihl\b", listed.stdout, re.M)


def test_the_method_fits_into_one_short_file() -> None:
    assert len(FILES["src/duet_unlearn/methods/ihl.py"].splitlines()) <= 120
