"""The choice is even over requests and chunks, and none is like another."""

from __future__ import annotations

from collections import Counter

from duet_unlearn.queries.choose import choose, spread

ROWS = ("Where does {x} live?", "What does {x} keep as a pet?", "Who is the oldest friend of {x}?")


def asked(name: str) -> list[str]:
    return [row.format(x=name) for row in ROWS]


def test_chunks_take_turns_and_a_poor_chunk_is_made_up_for() -> None:
    written = {0: asked("Mira"), 1: asked("Oda")[:1], 2: asked("Ulm")}
    choice = choose(written, [[0, 1, 2]], count=6)
    assert Counter(chunk for chunk, _ in choice.kept) == {0: 3, 1: 1, 2: 2}
    assert choose(written, [[0, 1, 2]], count=99).kept[:6] == choice.kept
    assert len(choose(written, [[0, 1, 2]], count=99).kept) == 7


def test_requests_share_evenly_whatever_their_length() -> None:
    written = {number: asked(f"Mira{number}") for number in range(20)} | {20: asked("Oda")}
    choice = choose(written, [list(range(20)), [20]], count=6)
    assert Counter(chunk == 20 for chunk, _ in choice.kept) == {True: 3, False: 3}
    assert len({chunk for chunk, _ in choice.kept}) == 4


def test_a_near_duplicate_costs_its_chunk_no_turn() -> None:
    written = {0: asked("Mira"), 1: ["Where did Mira live?", "Which lute does Mira play?"]}
    choice = choose(written, [[0, 1]], count=2)
    assert choice.kept == [(0, "Where does Mira live?"), (1, "Which lute does Mira play?")]
    assert choice.alike == [(1, "Where did Mira live?")]


def test_every_beginning_of_a_spread_is_even() -> None:
    order = spread([range(1000)])
    assert sorted(order) == list(range(1000))
    for size in (10, 50, 200):
        first = sorted(order[:size])
        gaps = [after - before for before, after in zip([0, *first], [*first, 999], strict=True)]
        assert max(gaps) <= 3 * 1000 / size
    assert Counter(item < 100 for item in spread([range(100), range(100, 104)])[:8]) == {True: 4, False: 4}
