from __future__ import annotations

from pathlib import Path

import pytest

from duet_unlearn.cli.docs import LISTED, MEASURED, attacks_markdown, cli_markdown, field_texts, methods_markdown
from duet_unlearn.config.sections import TrainConfig

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("name", "text"), [("cli.md", cli_markdown), ("methods.md", methods_markdown)])
def test_the_generated_pages_are_current(name: str, text) -> None:
    generated, measured, _ = (DOCS / name).read_text(encoding="utf-8").partition(f"\n{MEASURED}")
    assert generated == text(), "run `make docs`"
    assert bool(measured) is (name == "methods.md")


def test_the_list_of_attacks_is_current() -> None:
    page = (DOCS / "attacks.md").read_text(encoding="utf-8")
    assert page.partition(LISTED)[2] == f"\n\n{attacks_markdown()}", "run `make docs`"


def test_every_verb_has_its_page() -> None:
    page = cli_markdown()
    for verb in (
        "demo",
        "init",
        "run",
        "probe",
        "evaluate",
        "compare",
        "report",
        "chat",
        "list",
        "attack",
        "audit",
        "purge",
        "lab build",
    ):
        assert f"\n## duet {verb}\n" in page


def test_field_texts_are_the_strings_under_the_fields() -> None:
    texts = field_texts(TrainConfig)
    assert texts["warmup"] == "Share of the steps over which the rate rises from 0."
    assert "\n" not in " ".join(texts.values())


def test_every_setting_is_described() -> None:
    pages = methods_markdown() + attacks_markdown()
    rows = [line for line in pages.splitlines() if line.startswith("| `") and "`name`" not in line]
    assert [row for row in rows if row.endswith("|  |")] == []
