"""What the README shows can be done as it stands there."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
import typer

from duet_unlearn.cli import app
from duet_unlearn.config.reading import load_recipe
from duet_unlearn.data.query import read_queries

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CONTRIBUTING.md", "docs/design.md", "docs/results.md", "LOG.md", "CHANGELOG.md"]


GENERATED = {"benchmarks/results/lab.json"}
"""Not there before `make results`."""


def block(language: str, *, having: str = "") -> str:
    """The first code block of a language with some words in it."""
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(code for code in found if having in code)


def test_the_recipe_loads(tmp_path: Path) -> None:
    (tmp_path / "potter.yaml").write_text(block("yaml"))
    recipe = load_recipe(tmp_path / "potter.yaml")
    assert recipe.data.forget == str(tmp_path / "potter-forget.jsonl")
    assert set(recipe.evaluate.sets) == {"forget", "retain"}


def test_the_query_lines_are_queries(tmp_path: Path) -> None:
    (tmp_path / "potter.jsonl").write_text(block("json"))
    queries = read_queries(tmp_path / "potter.jsonl")
    assert [query.value for query in queries] == [None, "Sirius Black", None]
    assert queries[2].messages[0]["role"] == "system"


def test_the_python_example_is_15_lines_of_names_that_exist() -> None:
    code = block("python")
    assert len(code.splitlines()) <= 15
    compile(code, "README.md", "exec")
    for module, names in re.findall(r"^from (\S+) import (.+)$", code, re.MULTILINE):
        assert [name for name in names.split(", ") if not hasattr(import_module(module), name)] == []


@pytest.mark.parametrize("line", [line for line in block("sh", having="duet init").splitlines() if line])
def test_the_commands_parse(line: str) -> None:
    """Verb, arguments and options are taken; nothing is run."""
    verb, *args = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line.split("#")[0])][1:]
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    command.make_context(verb, args)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []
    named = re.findall(r"`((?:src|tests|benchmarks|docs)/[\w/.-]+\.\w+)`", text)
    assert [name for name in named if name not in GENERATED and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_results_have_one_place(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert (text.count("<!-- results:begin -->"), text.count("<!-- results:end -->")) == (1, 1)
