"""One contender in a process of its own: ``python -m contenders NAME FOLDER [--watched STEPS]``."""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib import import_module
from pathlib import Path

NAMES = ("prepare", "ours", "two_model", "sdft")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m contenders", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("folder", type=Path, help="has setting.json, and the model after `prepare`")
    parser.add_argument("--watched", type=int, default=0, help="steps behind the timed epoch whose phases are measured")
    args = parser.parse_args()
    contender = import_module(f"contenders.{args.name}")
    from contenders.setting import read_setting
    from duet_unlearn.training.loop import peak_memory

    imported = peak_memory()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        result = contender.run(read_setting(args.folder), args.folder, Path(scratch), watched=args.watched)
    result.setdefault("peak_bytes", {})["imports"] = imported
    (args.folder / f"{args.name}.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
