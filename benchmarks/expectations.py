"""What the lab's sweep is held against: DUET's published order, and five claims that were written down before it ran.

Each claim is judged by a rule that was fixed with it. The claims are about the methods that are named here and about
that one sweep: the report of another sweep has nothing of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from duet_unlearn.report.run_data import papers_tables
from duet_unlearn.report.sweep_data import (
    Difference,
    MethodRow,
    RunValue,
    SweepColumn,
    SweepData,
    SweepRow,
    difference,
    is_stage,
)
from duet_unlearn.report.sweep_page import MISSING, UNITS, SweepCell, SweepLine, SweepTable, sweep_cell

HALF = 0.5
"""Share of the base's at which something is forgotten, or has collapsed."""
CUT, DEAR = 0.50, 0.02
"""What bidirectional distillation should cut prefilling by, and may cost of near neighbours."""
ALPHA = 0.6
"""Noise from which UNDO is expected to hold (arXiv 2506.06278)."""
MARKED = 0.20
"""A fall of what relearning brings back that is called marked."""
PAPER_NAMES = {
    "base": "base",
    "base + prefix": "prefix",
    "DUET": "duet",
    "GA": "ga",
    "NPO": "npo",
    "FLAT": "flat",
    "refusal training": "refusal",
}
"""The paper's names of baselines and methods -> ours. Its ablations of DUET are no rows of a sweep."""
OURS = ("duet", "bidirectional")
TINY = 1e-9
"""Rounding of differences between shares."""
RULE = (
    "A difference is taken target by target and seed by seed. It decides where its mean lies further from the limit "
    "than its standard error over the targets; nearer, and where a number is missing, nothing is decided."
)
Decision = Literal["confirmed", "refuted", "not decidable"]


@dataclass(frozen=True)
class Expectation:
    claim: str
    decision: Decision
    check: str
    """The numbers behind it, with how many runs they are from."""


def expectations(sweep: SweepData) -> list[Expectation]:
    """All five, in the order in which they were written down."""
    judged: Sequence[tuple[str, Callable[[SweepData], tuple[Decision, str]]]] = (
        ("Gradient ascent (GA) collapses what is to be kept.", _ga_collapses),
        ("At equal queries, refusal training forgets less than DUET in held-out wordings.", _refusal_forgets_less),
        (
            "DUET or bidirectional distillation has the best Shift of trained methods that see no forgotten answer.",
            _ours_has_the_best_shift,
        ),
        (
            f"Bidirectional distillation cuts prefilling by {100 * CUT:.0f} points or more against DUET, at "
            f"{100 * DEAR:.0f} points of near neighbours or less.",
            _bidirectional_cuts_prefill,
        ),
        (f"UNDO at alpha {ALPHA:g} or more relearns markedly slower than its first stage.", _undo_relearns_slower),
    )
    return [Expectation(claim, *decide(sweep)) for claim, decide in judged]


def _ga_collapses(sweep: SweepData) -> tuple[Decision, str]:
    """Confirmed where GA keeps at most half of the base's retain. If the chosen setting has not forgotten (half of the
    base's held-out wordings or more are left), the trials that did forget decide, by the worst set that they kept."""
    row, base = sweep.method("ga"), sweep.baseline("base")
    if not row or not base or "retain" not in row.values:
        return _missing("GA was not tested")
    left = _against(row, base, "forget_held_out", share=HALF)
    kept = _against(row, base, "retain", share=HALF)
    if kept is None or left is None:
        return _missing("GA's or the base's numbers are missing")
    if left.mean > 0:
        return _ga_trials(row, base)
    check = f"Retain: {_mean_text(row, 'retain')}, base {_mean_text(base, 'retain')}; limit: half of the base's."
    return _judge(-kept.mean, kept), f"{check} It forgot: {_mean_text(row, 'forget_held_out')} in held-out wordings."


def _ga_trials(row: MethodRow, base: SweepRow) -> tuple[Decision, str]:
    done = [trial for trial in row.trials if trial["failed"] is None and trial["forget"] is not None]
    forgot = [trial for trial in done if trial["forget"] <= HALF]
    start = (
        f"The chosen setting forgot too little to tell ({_mean_text(row, 'forget_held_out')} left in held-out "
        f"wordings, base {_mean_text(base, 'forget_held_out')}; retain {_mean_text(row, 'retain')})."
    )
    if not forgot:
        return "not decidable", f"{start} So did every one of its {len(done)} trials."
    best = max(trial["keep"] for trial in forgot)
    words = f"{start} Of the {len(forgot)} trials (of {len(done)}) that left at most half, the best kept {best:.2f} of "
    return ("confirmed" if best <= HALF else "refuted"), f"{words}the base's on its worst set to keep (limit {HALF})."


def _refusal_forgets_less(sweep: SweepData) -> tuple[Decision, str]:
    """Confirmed where more is left of held-out wordings after refusal training than after DUET; nothing is decided
    where the two were trained on other queries."""
    one, other = sweep.method("refusal"), sweep.method("duet")
    gap = _gap(one, other, "forget_held_out")
    if not one or not other or not gap:
        return _missing("refusal or duet was not tested")
    check = f"Right in held-out wordings: refusal {_mean_text(one, 'forget_held_out')}, duet "
    check += f"{_mean_text(other, 'forget_held_out')}; {_gap_text(gap)}."
    if one.queries != other.queries:
        return "not decidable", f"{check} But they were not trained on the same queries."
    return _judge(gap.mean, gap, strict=True), check


def _ours_has_the_best_shift(sweep: SweepData) -> tuple[Decision, str]:
    """Confirmed where the better of the two beats the best of the others. DUET is the row of that name: its other
    distances, BiLD's for one, are others."""
    free = [row for row in sweep.methods if row.kind == "trained" and not row.sees_answers]
    tested = [row for row in free if "shift" in row.values]
    tested.sort(key=lambda row: -row.mean("shift").value)
    ours = next((row for row in tested if row.name in OURS), None)
    rival = next((row for row in tested if row.name not in OURS), None)
    gap = _gap(ours, rival, "shift")
    if not ours or not rival or not gap:
        return _missing("there is nothing to compare")
    check = (
        f"Best of {len(tested)} methods that read neither answers nor text: {ours.name} "
        f"{_mean_text(ours, 'shift')}, the next best {rival.name} {_mean_text(rival, 'shift')}; "
        f"{_gap_text(gap, scale=1)}."
    )
    return _judge(gap.mean, gap), check


def _bidirectional_cuts_prefill(sweep: SweepData) -> tuple[Decision, str]:
    """Confirmed where both hold; refuted where one fails."""
    one, other = sweep.method("duet"), sweep.method("bidirectional")
    cut, cost = _gap(one, other, "prefill"), _gap(one, other, "near")
    if not one or not other or not cut or not cost:
        return _missing("duet or bidirectional was not tested")
    decisions = [_judge(cut.mean - CUT, cut), _judge(DEAR - cost.mean, cost)]
    check = " ".join(
        f"{title}: duet {_mean_text(one, key)}, bidirectional {_mean_text(other, key)}; {_gap_text(gap)}, {limit}."
        for title, key, gap, limit in (
            ("Prefilling", "prefill", cut, f"asked was a fall of {100 * CUT:.0f}"),
            ("Near neighbours", "near", cost, f"allowed were {100 * DEAR:.0f}"),
        )
    )
    return _all(decisions), check


def _undo_relearns_slower(sweep: SweepData) -> tuple[Decision, str]:
    """Confirmed where relearning brings back at least ``MARKED`` less than of the first stage, of every UNDO with that
    much noise."""
    steps = (sweep.protocol.get("relearn") or {}).get("steps", "?")
    decisions, words = [], []
    for row in sweep.methods:
        # UNDO's noise is the chosen setting's, else that of its runs; it is missing if the folder does not have it.
        alpha = float(row.settings.get("method.alpha", row.options.get("alpha")) or 0.0)
        if row.method != "undo" or alpha < ALPHA - TINY:
            continue
        first = next((one for one in sweep.methods if is_stage(one.recipe, one.name, row.after[:1])), None)
        gap = _gap(first, row, "relearned")
        if first and gap:
            decisions.append(_judge(gap.mean - MARKED, gap))
            words.append(
                f"Right again after {steps} steps, the worst of the rates: {first.name} "
                f"{_mean_text(first, 'relearned')}, {row.name} (alpha {alpha:g}) {_mean_text(row, 'relearned')}; "
                f"{_gap_text(gap)}, asked was a fall of {100 * MARKED:.0f}."
            )
    if not decisions:
        return _missing(f"no UNDO with alpha >= {ALPHA:g} and its first stage were relearned")
    oracle = sweep.baseline("oracle")
    if oracle and "relearned" in oracle.values:
        words.append(f"Oracle: {_mean_text(oracle, 'relearned')}.")
    return _all(decisions), " ".join(words)


def _judge(margin: float, gap: Difference, *, strict: bool = False) -> Decision:
    """What a margin over a limit decides: nothing within the standard error. `strict`: the limit itself refutes."""
    if not math.isnan(gap.error) and abs(margin) <= gap.error and gap.error > TINY:
        return "not decidable"
    return "confirmed" if margin > (TINY if strict else -TINY) else "refuted"


def _all(decisions: Sequence[Decision]) -> Decision:
    if "refuted" in decisions:
        return "refuted"
    return "not decidable" if "not decidable" in decisions else "confirmed"


def _gap(one: MethodRow | None, other: MethodRow | None, key: str) -> Difference | None:
    if not one or not other:
        return None
    return difference(one.values.get(key, ()), other.values.get(key, ()))


def _against(row: SweepRow, base: SweepRow, key: str, *, share: float) -> Difference | None:
    """A method's number less a share of the base's."""
    limit = [RunValue(p.target, p.seed, share * p.value, p.n) for p in base.values.get(key, ())]
    return difference(row.values.get(key, ()), limit, match="target")


def _missing(why: str) -> tuple[Decision, str]:
    return "not decidable", f"{why[0].upper()}{why[1:]}."


def _mean_text(row: SweepRow, key: str) -> str:
    """A mean with its spread over targets, and what it is of; the Shift in points, everything else in per cent."""
    mean = row.mean(key)
    scale, sign, unit = (1, "+", "") if key == "shift" else (100, "", " %")
    spread = "" if math.isnan(mean.over_targets) else f" ± {scale * mean.over_targets:.1f}"
    questions = f", n = {mean.n}" if mean.n and key != "shift" else ""
    runs = f"{mean.runs} run{'s' if mean.runs > 1 else ''}"
    return f"{scale * mean.value:{sign}.1f}{spread}{unit} ({runs}{questions})"


def _gap_text(gap: Difference, *, scale: float = 100) -> str:
    error = "" if math.isnan(gap.error) else f", standard error {scale * gap.error:.1f}"
    over = f"{gap.runs} pairs, {gap.targets} target{'s' if gap.targets > 1 else ''}"
    return f"difference {scale * gap.mean:+.1f} points{error} ({over})"


def paper_table(sweep: SweepData) -> SweepTable | None:
    """Performance Shift and reverse prompts of the paper's Tables 1, 4 and 6 next to the sweep's; None where no row of
    a method is in both. Other models, data and units: the order alone can be compared."""
    shifts, reversed_ = _paper_numbers()
    found = _paper_rows(sweep)
    if not any(row.kind != "baseline" for row in found.values()):
        return None
    titles = ("Shift, paper", "Shift, here", "reverse prompt, paper", "reverse prompt, here")
    lines = []
    for name, row in sorted(found.items(), key=lambda pair: -shifts[pair[0]]):
        theirs = " → ".join(f"{value:.1f}" for value in reversed_[name]) if name in reversed_ else MISSING
        plain_and_reversed = [row.mean(key).value for key in ("forgotten", "reverse_prompt")]
        ours = " → ".join(UNITS["share"][0](value, "") for value in plain_and_reversed)
        cells = [
            SweepCell(f"{shifts[name]:+.1f}"),
            sweep_cell(row, SweepColumn("shift", "Shift", "high", "points")),
            SweepCell(theirs),
            SweepCell(MISSING if math.isnan(sum(plain_and_reversed)) else ours),
        ]
        lines.append(SweepLine(name, row.kind, cells))
    note = (
        "DUET, arXiv 2601.21283: Tables 1 and 4 (Harry Potter, Llama 3.2 3B; Shift in points of ROUGE-L and MMLU) and "
        "Table 6 (ROUGE-L on 500 questions, plain → behind a reverse prompt). Here: points and per cent of right "
        f"answers in this sweep. In the paper's order. {paper_order(sweep)}"
    )
    columns = [SweepColumn(title, title, "high", "text") for title in titles]
    return SweepTable("paper", "Next to the paper", note, columns, lines)


def paper_order(sweep: SweepData) -> str:
    """In how many pairs the Shift is in the paper's order, and which are in the other, beyond the standard error."""
    shifts, _ = _paper_numbers()
    found = {name: row for name, row in _paper_rows(sweep).items() if "shift" in row.values}
    same, close, other = 0, 0, []
    for one, two in combinations(sorted(found, key=lambda name: -shifts[name]), 2):
        of_one_model = "baseline" in (found[one].kind, found[two].kind)
        match = "target" if of_one_model else "run"
        gap = difference(found[one].values["shift"], found[two].values["shift"], match=match)
        if gap is None or gap.mean == 0 or abs(gap.mean) <= gap.error:
            close += 1
        elif gap.mean > 0:
            same += 1
        else:
            other.append(f"{two} above {one}")
    words = f"Of the {same + len(other) + close} pairs with a Shift {same} are in the paper's order"
    which = f": {', '.join(other)}." if other else "."
    return f"{words}, {close} too close to tell, {len(other)} the other way round{which}"


def _paper_numbers() -> tuple[Mapping[str, float], Mapping[str, Sequence[float]]]:
    """Name -> Shift, and name -> plain and reversed, of the paper's rows that have a place in a sweep."""
    shifts: dict[str, float] = {}
    reversed_: dict[str, Sequence[float]] = {}
    for table in papers_tables()["tables"]:
        titles = [title for title, _ in table["columns"]]
        for name, *numbers in table["rows"]:
            if name in PAPER_NAMES and "Shift" in titles:
                shifts[name] = numbers[titles.index("Shift")]
            if name in PAPER_NAMES and "reverse prompt" in titles:
                reversed_[name] = numbers
    return shifts, reversed_


def _paper_rows(sweep: SweepData) -> dict[str, SweepRow]:
    """The paper's name -> the sweep's row, of those that are in both."""
    found: dict[str, SweepRow] = {}
    for name in _paper_numbers()[0]:
        row = sweep.baseline(PAPER_NAMES[name]) if name.startswith("base") else sweep.method(PAPER_NAMES[name])
        if row is None or row.kind == "failed":
            continue
        if name == "base":  # whose Shift against itself is 0
            targets = dict.fromkeys(value.target for values in row.values.values() for value in values)
            row = replace(row, values={**row.values, "shift": [RunValue(target, 0, 0.0) for target in targets]})
        found[name] = row
    return found
