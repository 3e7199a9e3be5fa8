"""The page: complete, escaped, self-contained, and honest about what is missing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up_attacks import counted, measured, write_attack, write_everyone

from duet_unlearn.errors import UserError
from duet_unlearn.report import render_report, write_report
from duet_unlearn.report.run_data import read_run
from duet_unlearn.report.verdict import BACK, RECOVERY_RULE, attack_summaries

SECTIONS = ["verdict", "table", "picture", "robustness", "first-token", "curves", "samples", "settings"]
MakeRun = Callable[..., Path]
NASTY = "<script>alert(1)</script>"


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


def section(run: Path) -> str:
    found = re.search(r'<section id="attacks">.*?</section>', render_report(run), re.DOTALL)
    assert found
    return found[0]


def test_a_run_that_nobody_attacked_says_so(make_run: MakeRun) -> None:
    assert "duet attack RUN" in section(make_run())


def test_a_page_of_a_run_that_nobody_attacked_is_made_without_torch(make_run: MakeRun) -> None:
    run = make_run()
    code = (
        "import sys; from pathlib import Path; from duet_unlearn.report import render_report\n"
        "render_report(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run)], timeout=60).returncode == 0


def test_the_table_of_attacks_has_the_strongest_instance_and_its_interval(make_run: MakeRun) -> None:
    run = make_run()
    write_everyone(run, "reverse", 60, 3, 30)
    shown = section(run)
    for part in (
        "<b>+45.0</b>",
        "comes back</span>",
        "second<small>of 2</small>",
        "n 60, any 50.0",
        "2.5 s in all",
    ):
        assert part in shown, part


def test_the_rule_is_stated_with_its_numbers(make_run: MakeRun) -> None:
    run = make_run()
    write_everyone(run, "reverse", 60, 3, 30)
    assert f"{100 * BACK:.0f} % of the facts" in RECOVERY_RULE
    assert "How the verdict is made" in render_report(run)
    assert "at least 20 % of the facts" in section(run)


def test_an_attack_under_which_the_base_is_silent_tells_little(make_run: MakeRun) -> None:
    run = make_run()
    write_everyone(run, "gcg", 2, 0, 0)
    assert "the base itself does not answer under this attack" in section(run)


def test_failed_and_not_applicable_say_why(make_run: MakeRun) -> None:
    run = make_run()
    write_attack(run, "gcg", "student", status="failed", reason=f"out of memory {NASTY}")
    write_attack(run, "steer", "student", status="not applicable", reason="the weights are the base's")
    shown = section(run)
    assert "student: failed: out of memory &lt;script&gt;" in shown
    assert "student: not applicable: the weights are the base&#39;s" in shown
    assert shown.count("not measured</span>") == 2


def test_attacks_are_grouped_by_what_they_need_worst_first(make_run: MakeRun) -> None:
    run = make_run()
    for name, access, right in (("a", "weights", 60), ("b", "chat", 10), ("c", "chat", 40), ("d", "opening", 50)):
        write_everyone(run, name, 60, 0, right, access=access)
    assert [found.name for found in attack_summaries(read_run(run))] == ["c", "b", "d", "a"]
    titles = re.findall(r'<tr class="needs"><th[^>]*>(.*?)</th>', section(run))
    assert titles == ["By asking", "By opening the answer too", "With the weights"]


def test_answers_that_give_away_come_first_and_are_escaped(make_run: MakeRun) -> None:
    run = make_run()
    path = write_attack(run, "reverse", "student", [counted("first", 30)], title=f"Reverse {NASTY}")
    stored = json.loads(path.read_text())
    stored["transcript"] = [*reversed(stored["transcript"])]
    stored["transcript"][-1]["output"] = f"Tarn {NASTY}"
    path.write_text(json.dumps(stored))
    shown = section(run)
    assert "30 of 60 answers give the fact away" in shown
    assert "not given away" not in shown
    assert shown.count('<div class="response">') == 5
    page = Page(render_report(run))
    assert page.open == []
    assert "script" not in page.tags


def test_a_redacted_page_has_scores_and_no_words(make_run: MakeRun) -> None:
    run = make_run()
    write_everyone(run, "reverse", 60, 3, 30, title="About Mira Bol lives in Tarn")
    page = write_report(run, shown="scores")
    assert page.name == "report-redacted.html"
    text = page.read_text()
    for secret in ("Tarn", "In which town", "Amber", "amber-gate", "forget question 0"):
        assert secret not in text, secret
    for kept in ("<b>+45.0</b>", "Redacted.", "Held-out wordings", "62.0", "forgotten &lt;b&gt;too&lt;/b&gt;"):
        assert kept in text, kept
    assert "Unlearning “Amber Gate”" in write_report(run, shown="scores and name").read_text()
    assert "In which town" in write_report(run).read_text()


def test_other_measures_have_their_own_units(make_run: MakeRun) -> None:
    run = make_run()
    for subject, auc, bits in (("base", 0.97, 9.0), ("oracle", 0.52, 1.4), ("student", 0.66, 1.6)):
        write_attack(run, "member", subject, [measured("loss", auc, auc - 0.06, auc + 0.02)], metric="auc")
        write_attack(run, "exposed", subject, [measured("all", bits, bits - 0.4, bits + 0.5)], metric="bits")
    member, exposed = sorted(re.findall(r'<th scope="row">\w+<small>.*?</tr>', section(run), re.DOTALL))[::-1]
    assert "<b>+0.14</b><small>+0.08 to +0.20</small>" in member
    assert "leaves a trace</span>" in member
    assert "<b>9.0</b>" in exposed
    assert "no trace</span>" in exposed


@pytest.mark.parametrize(
    ("tokens", "shown"), [(84, "84"), (840, "840"), (8400, "8.4 k"), (84_000, "84 k"), (8.4e6, "8.4 M")]
)
def test_tokens_are_written_as_a_reader_wants_them(make_run: MakeRun, tokens: float, shown: str) -> None:
    run = make_run()
    write_everyone(run, "reverse", 60, 3, 30, tokens=round(60 * tokens))
    assert f's in all">{shown}</td>' in section(run)
