from __future__ import annotations

import io

import pytest

from duet_unlearn.cli.terminal import INTERVAL, plain_lines, progress
from duet_unlearn.events import Event


def test_first_last_and_one_line_every_interval() -> None:
    stream, now = io.StringIO(), [0.0]
    watch = plain_lines(stream, clock=lambda: now[0])
    for step in range(1, 101):
        now[0] = step * INTERVAL / 50
        watch(Event("train", step, 100, f"loss {step}"))
    assert stream.getvalue().splitlines() == [
        "train: 1/100 loss 1",
        "train: 51/100 loss 51",
        "train: 100/100 loss 100",
    ]


def test_phases_are_timed_apart_and_unknown_totals_left_out() -> None:
    stream = io.StringIO()
    watch = plain_lines(stream, clock=lambda: 0.0)
    watch(Event("probe", 0, 0, "asking"))
    watch(Event("train", 0, 10))
    assert stream.getvalue().splitlines() == ["probe: asking", "train: 0/10"]


def test_no_terminal_no_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as on_event:
        on_event(Event("lab", 3, 3, "done"))
    assert capsys.readouterr().err == "lab: 3/3 done\n"


def test_a_terminal_gets_bars(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress() as on_event:
        on_event(Event("train", 1, 2, "loss [0.5]"))
        on_event(Event("train", 2, 2, "loss [0.4]"))
    assert "loss [0.4]" in capsys.readouterr().err
