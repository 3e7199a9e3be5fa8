"""The script behind docs/comparison.md, on a sweep that is made up; and the page itself, if it is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from made_up_sweep import MADE, results, write

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
FEW = tuple(made for made in MADE if made.name in ("duet", "npo", "wga", "simnpo", "guard", "ngdiff", "undo", "maxent"))
NAMES = ("forget-keep", "forget-keep-corner", "robust-cost")


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import comparison

    return comparison


def main(comparison: ModuleType, folder: Path, *arguments: str) -> str:
    """Run the script below a folder; returns the page."""
    comparison.main([*arguments, "--results", str(folder / "kept.json"), "--root", str(folder)])
    return (folder / "docs" / "comparison.md").read_text()


def test_page_has_every_table_and_picture(comparison: ModuleType, tmp_path: Path) -> None:
    page = main(comparison, tmp_path, str(write(tmp_path / "sweep", results(FEW))))
    titles = ("What was expected", "Forgetting against keeping", "Robustness against cost", "Forgetting and keeping")
    titles += ("What brings it back", "What it needs and costs", "What was tuned", "Next to the paper")
    titles += ("What failed", "Protocol")
    places = [page.index(f"\n## {title}") for title in titles]
    assert places == sorted(places)
    for name in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert (tmp_path / "docs" / name).exists()
    assert "| wga (1 failed) |" in page
    assert "| *guard* |" in page
    assert "- wga: silver-mill, seed 2: the loss is not finite at step 40" in page
    assert "- guard: not relearned: there are no weights of its own to fine-tune" in page


def test_cells_by_hand(comparison: ModuleType, tmp_path: Path) -> None:
    found = results(FEW)
    for run in found["runs"]:
        if run["method"] == "duet" and run["kind"] == "test":
            story = {"amber-gate": 0.1, "silver-mill": 0.2, "hollow-clock": 0.3}[run["target"]]
            run["scores"]["near"]["right"]["value"] = story + 0.01 * run["seed"]
    page = main(comparison, tmp_path, str(write(tmp_path / "sweep", found)))
    duet = next(line for line in page.splitlines() if line.startswith("| duet | "))
    assert " 21.0 ± 10.0 (1.0) " in duet
    lines = [line for line in page.splitlines() if line.startswith("|")]
    for table in re.findall(r"(?:^\|.*\n)+", page, flags=re.M):
        assert len({line.count(" | ") for line in table.splitlines()}) == 1
    assert any(re.search(r"\*\*\d+\.\d\*\* ± ", line) for line in lines)


def test_what_is_kept_gives_the_same_page(comparison: ModuleType, tmp_path: Path) -> None:
    """All that the page shows is in the kept JSON, and little else."""
    from duet_unlearn.report.sweep_data import read_sweep

    folder = write(tmp_path / "sweep", results(FEW))
    page = main(comparison, tmp_path, str(folder))
    assert comparison.render(read_sweep(folder)) in page
    assert main(comparison, tmp_path, "--render-only") == page
    assert (tmp_path / "kept.json").stat().st_size < 0.6 * (folder / "results.json").stat().st_size
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert {run["kind"] for run in kept["runs"]} == {"test"}


def test_options_of_the_run_folders_are_kept(comparison: ModuleType, tmp_path: Path) -> None:
    folder = write(tmp_path / "sweep", results(FEW))
    run = folder / "test" / "undo" / "amber-gate-0"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("method: {name: undo, alpha: 0.6}\ndata: {forget: f.jsonl, distil: text}\n")
    main(comparison, tmp_path, str(folder))
    undo = next(m for m in json.loads((tmp_path / "kept.json").read_text())["methods"] if m["name"] == "undo")
    assert undo["options"] == {"name": "undo", "alpha": 0.6}
    assert undo["queries"] == {"forget": "f.jsonl"}


def test_what_is_written_by_hand_stays(comparison: ModuleType, tmp_path: Path) -> None:
    folder = write(tmp_path / "sweep", results(FEW))
    main(comparison, tmp_path, str(folder))
    page = tmp_path / "docs" / "comparison.md"
    page.write_text(
        page.read_text().replace("contradicts a paper\n", "contradicts a paper\n\nNowhere.\n") + "The end.\n"
    )
    again = main(comparison, tmp_path, "--render-only")
    assert again.endswith("contradicts a paper\n\nNowhere.\nThe end.\n")
    page.write_text("# Without markers\n")
    with pytest.raises(ValueError, match="needs one"):
        main(comparison, tmp_path, "--render-only")


def test_pictures_stand_alone(comparison: ModuleType, tmp_path: Path) -> None:
    main(comparison, tmp_path, str(write(tmp_path / "sweep")))
    for name in NAMES:
        text = (tmp_path / "docs" / f"comparison-{name}.svg").read_text()
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
        assert "prefers-color-scheme: dark" in text
        colours = set(re.findall(r"var\((--[a-z-]+)\)", text))
        assert {"--ink", "--student", "--seen"} <= colours
        assert colours <= set(re.findall(r"(--[a-z-]+):", text))


def test_a_bar_in_a_text_breaks_no_table(comparison: ModuleType) -> None:
    assert comparison.markdown(["a"], [["x | y\nz"]], "l").splitlines()[-1] == r"| x \| y z |"


@pytest.mark.parametrize("arguments", [[], ["somewhere", "--render-only"]])
def test_a_sweep_or_the_kept_numbers(comparison: ModuleType, arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        comparison.main([*arguments, "--root", str(tmp_path)])


def test_what_is_no_sweep_is_said_without_a_traceback(comparison: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is not a sweep folder"):
        main(comparison, tmp_path, str(tmp_path))
    assert not (tmp_path / "kept.json").exists()


def test_the_page_in_docs_is_current(comparison: ModuleType, tmp_path: Path) -> None:
    """Where numbers are kept there is a page, and it and its pictures are what the script makes of them."""
    kept, docs = BENCHMARKS / "results" / "comparison.json", ROOT / "docs"
    page = docs / "comparison.md"
    assert kept.exists() == page.exists()
    if not kept.exists():
        assert list(docs.glob("comparison*")) == []
        return
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "comparison.md").write_text(page.read_text())
    comparison.write(json.loads(kept.read_text()), tmp_path)
    for path in (tmp_path / "docs").iterdir():
        assert (docs / path.name).read_text() == path.read_text(), f"{path.name}: {comparison.COMMAND} --render-only"


def test_help_needs_no_torch() -> None:
    code = "import sys, comparison\ntry:\n  comparison.main(['--help'])\nexcept SystemExit:\n  "
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--render-only" in done.stdout
