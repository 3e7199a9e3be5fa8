"""The page: complete, escaped, self-contained, and honest about what is missing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from duet_unlearn.errors import UserError
from duet_unlearn.report import render_report, write_report
from duet_unlearn.report.figures import _spread, _thin, curves, scatter
from duet_unlearn.report.views import duration

SECTIONS = ["verdict", "table", "picture", "robustness", "first-token", "curves", "samples", "settings"]
MakeRun = Callable[..., Path]


class Page(HTMLParser):
    """The tags of a page, its ids in order, and everything that is loaded or runs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.active: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            local = (value or "").startswith("#")
            if name.startswith("on") or (name in ("src", "href", "data", "action") and not local):
                self.active.append(f"{tag} {name}={value}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def test_every_section_is_present_in_order(make_run: MakeRun) -> None:
    page = Page(render_report(make_run()))
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert page.open == []


def test_page_loads_nothing_and_runs_nothing(make_run: MakeRun) -> None:
    text = render_report(make_run())
    page = Page(text)
    assert page.active == []
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "form"})
    assert not re.search(r"https?://|@import|url\(", text)


def test_model_text_is_escaped_and_shown(make_run: MakeRun) -> None:
    text = render_report(make_run())
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; " in text


def test_names_in_the_figures_are_escaped(make_run: MakeRun) -> None:
    run = make_run()
    for file in (run / "evals").glob("*.json"):
        text = file.read_text().replace("Held-out wordings", "<img src=x>")
        file.write_text(text.replace("Prefilling", "</svg><b>"))
    page = Page(render_report(run))
    assert "img" not in page.tags
    assert page.open == []


def test_table_has_per_cent_interval_and_n(make_run: MakeRun) -> None:
    text = render_report(make_run())
    assert 'title="student (DUET), Reverse prompt: 62.0 % right; interval 52.2 to 70.9; refused 26.6 %;' in text
    assert "<b>62.0</b>" in text
    assert "n 100" in text
    assert "+185.4" in text


def test_settings_show_versions_hashes_time_and_warnings(make_run: MakeRun) -> None:
    text = render_report(make_run())
    shown = ("transformers", "ab" * 32, "1 h 02 min", "512 MiB", "forgotten &lt;b&gt;too&lt;/b&gt;", "k: 20")
    for part in shown:
        assert part in text


def test_sample_rule_is_named_and_twenty_questions_are_shown(make_run: MakeRun) -> None:
    text = render_report(make_run())
    assert "Every k-th question of each set in order of its id hash (SHA-256)." in text
    assert text.count("<article") == 20


def test_base_is_not_blamed_for_knowing(make_run: MakeRun) -> None:
    first = render_report(make_run()).split("<article")[1]
    assert '<span class="s-base">base</span>\n<span class="tag ">right</span>' in first
    assert '<span class="tag good">refused</span>' in first


@pytest.mark.parametrize(
    "missing",
    [
        "evals/oracle.json",
        "evals/prefix.json",
        "evals/student.json",
        "evals/first_tokens.json",
        "evals",
        "samples",
        "probe.json",
        "env.json",
        "metrics.jsonl",
        "timings.json",
        "DONE",
    ],
)
def test_a_missing_piece_leaves_the_page_whole(make_run: MakeRun, missing: str) -> None:
    run = make_run()
    remove(run / missing)
    page = Page(render_report(run))
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert page.open == []


def test_recipe_alone_is_a_page(make_run: MakeRun) -> None:
    run = make_run()
    for child in run.iterdir():
        if child.name != "recipe.yaml":
            remove(child)
    text = render_report(run)
    assert "The student was not evaluated." in text


def test_without_first_tokens_the_probe_shows_before_and_prefix(make_run: MakeRun) -> None:
    run = make_run()
    (run / "evals" / "first_tokens.json").unlink()
    text = render_report(run)
    assert "before (base)" in text
    assert "after (student)" not in text


def test_a_run_without_retain_has_no_picture(make_run: MakeRun) -> None:
    text = render_report(make_run(right={"base": (1.0, 0.98), "student": (0.0, 0.02)}))
    assert "Not drawn" in text
    assert "What it cost is unknown" in text


def test_an_empty_set_is_not_zero(make_run: MakeRun) -> None:
    text = render_report(make_run(right={"base": (1.0, 0.9, 0.9), "student": (0.0, None, 0.1)}))
    assert text.count('<span class="na">n/a</span><small>(n = 0)</small>') == 1 + 1  # and the base's shift
    assert "nan" not in re.sub(r"<style>.*</style>", "", text, flags=re.S).lower().split()


def test_a_validation_loss_alone_is_drawn(make_run: MakeRun) -> None:
    run = make_run()
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": None, "validation": 0.5}) + "\n")
    text = render_report(run)
    assert "validation 0.5" in text
    assert "Training loss over steps" not in text


def test_write_report_is_whole_and_leaves_nothing_else(make_run: MakeRun) -> None:
    run = make_run()
    half = {"set": "near", "id": "a", "prompt": "q", "output": "half \ud800", "outcome": "wrong"}
    (run / "samples" / "student.jsonl").write_text(json.dumps(half) + "\n")
    before = {path.name for path in run.iterdir()}
    assert write_report(run) == run / "report.html"
    assert {path.name for path in run.iterdir()} == before | {"report.html"}
    assert (run / "report.html").read_text(encoding="utf-8").endswith("</html>\n")


def test_same_run_same_page(make_run: MakeRun) -> None:
    run = make_run()
    assert render_report(run) == render_report(run)


def test_a_full_disk_is_two_lines(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    run = make_run()
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        write_report(run)
    assert "\n" not in caught.value.message
    assert not list(run.glob(".report*"))


def test_labels_keep_their_distance() -> None:
    assert _spread([10.0, 11.0, 50.0], gap=20, low=0, high=100) == [10.0, 30.0, 50.0]
    assert _spread([95.0, 90.0], gap=20, low=0, high=100) == [100.0, 80.0]


def test_long_curves_are_thinned_and_keep_their_last_point() -> None:
    thin = _thin([(float(step), 0.0) for step in range(1, 1002)])
    assert len(thin) <= 400
    assert thin[-1] == (1001.0, 0.0)


def test_figures_without_numbers_do_not_fail() -> None:
    assert curves("t", {"loss": [(1, float("nan"))]}, css={"loss": "c"}) == ""
    assert scatter([], x_label="x", y_label="y").startswith("<svg")


def test_durations() -> None:
    assert [duration(seconds) for seconds in (8.41, 200, 3720)] == ["8.4 s", "3 min 20 s", "1 h 02 min"]


def test_requests_are_a_table_where_there_are_any(make_run: MakeRun) -> None:
    run = make_run()
    assert "requests" not in Page(render_report(run)).ids
    for subject, right in (("base", 1.0), ("student", 0.25)):
        path = run / "evals" / f"{subject}.json"
        found = json.loads(path.read_text())
        low = {"value": right, "n": 8, "low": None, "high": None}
        none = low | {"value": None, "n": 0}
        found["requests"] = {"<b>r-1": {"forget": {"right": low}}, "r-2": {"forget": {"right": none}}}
        path.write_text(json.dumps(found))
    page = render_report(run)
    table = page[page.index('id="requests"') : page.index('id="picture"')]
    rows = [re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", row)).strip() for row in table.split("<tr>")[2:]]
    assert rows[0] == "&lt;b&gt;r-1 Train wordings right \u2193 low 100.0 % n 8 25.0 % n 8"
    assert rows[1].startswith("r-2 Train wordings right \u2193 low n/a n 0 n/a n 0")
    assert Page(page).open == []


def test_a_set_without_any_number_has_no_column_but_is_named(make_run: MakeRun) -> None:
    text = render_report(make_run(right={"base": (1.0, None, 0.9), "student": (0.0, None, 0.1)}))
    assert "Without a number, and left out: Held-out wordings." in text
    assert "Held-out wordings" not in text[text.index('<table class="scores">') : text.index('id="picture"')]


def test_answers_that_were_not_judged_have_no_badge(make_run: MakeRun) -> None:
    run = make_run()
    path = run / "samples" / "student.jsonl"
    path.write_text(re.sub(r'"outcome": "\w+"', '"outcome": null', path.read_text()))
    text = render_report(run)
    assert ">None</span>" not in text
    assert '<h4><span class="s-student">student</span>\n</h4>' in text


def test_many_columns_are_several_tables_and_metrics_have_names(make_run: MakeRun) -> None:
    run = make_run()
    for file in [run / "evals" / f"{subject}.json" for subject in ("base", "prefix", "oracle", "student")]:
        found = json.loads(file.read_text())
        for i in range(8):
            found["scores"][f"more{i}"] = {"rouge_l": found["scores"]["near"]["rouge_l"]}
            found["sets"][f"more{i}"] = found["sets"]["near"] | {"title": f"More {i}", "metric": "rouge_l"}
        file.write_text(json.dumps(found))
    text = render_report(run)
    assert text.count('<table class="scores">') == 3
    assert "ROUGE-L<br>" in text
    assert "rouge l" not in text
    assert sorted(map(int, re.findall(r'<li id="note-(\d+)"', text))) == list(range(1, 23))
