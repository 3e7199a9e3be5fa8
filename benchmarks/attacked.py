"""What comes back: the attacks of `duet attack` on every method of a finished sweep, in docs/results.md.

python benchmarks/attacked.py SWEEP_DIR [--workers 2]   attack the sweep's kept students, then keep and show it
python benchmarks/attacked.py SWEEP_DIR --robust DIR    and those of `duet sweep benchmarks/robust.yaml`
python benchmarks/attacked.py --render-only             the page again, from results/attacked.json

Every method of the sweep meets the suite `standard` on one story with one seed; the five that keep at least 90 % of the
base and give least away meet it on every story with every seed; DUET, bidirectional and UNDO meet `full` on the one
story. What base, base + prefix and oracle give away is measured once a story. Goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pages import between

from duet_unlearn.attacks.attack_run import read_attacks
from duet_unlearn.attacks.result import Access, finding, from_json
from duet_unlearn.data.files import atomic_write_json
from duet_unlearn.runs import versions

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "attacked.json"
PAGE, PICTURE = ROOT / "docs" / "results.md", ROOT / "docs" / "attacked.svg"
BEST, KEEPS = 5, 0.9
FULL = ("duet", "bidirectional", "undo")
ACCESS: tuple[Access, ...] = ("chat", "opening", "decoding", "weights")
WORDS = {"chat": "asking", "opening": "opening the answer", "decoding": "decoding", "weights": "weights"}
KEPT_SETS = ("near", "far", "choice")
Result = dict[str, Any]


# Attacking -----------------------------------------------------------------------------------------------------------


def attack_all(sweep: Path, workers: int, rounds: int) -> Result:
    """The rounds, and what is kept of them."""
    table = json.loads((sweep / "results.json").read_text(encoding="utf-8"))
    methods = [one["name"] for one in table["methods"] if not one["failed"]]
    targets, seeds = (table["protocol"]["test"][key] for key in ("targets", "seeds"))
    target, seed = targets[0], seeds[0]

    def run_of(name: str, target: str = target, seed: int = seed) -> Path:
        return sweep / "test" / name / f"{target}-{seed}"

    leader = run_of(methods[0])
    _round("standard", [[leader], [run_of(name) for name in methods[1:]]], workers, like={target: leader})
    found = {name: read(run_of(name)) for name in methods}
    best = choose(found, {name: kept(table, name) for name in methods})
    print(f"the {BEST} best: {', '.join(best)}", file=sys.stderr, flush=True)
    runs = {name: {f"{target}-{seed}": attacks} for name, attacks in found.items()}
    if rounds > 1:
        leaders = {target: leader} | {one: run_of(best[0], one, seeds[0]) for one in targets if one != target}
        rest = [run_of(name, one, number) for name in best for one in targets for number in seeds]
        first = [path for one, path in leaders.items() if one != target]
        _round("standard", [first, [path for path in rest if path not in first]], workers, like=leaders)
        for name in best:
            runs[name] = {f"{one}-{number}": read(run_of(name, one, number)) for one in targets for number in seeds}
    full: dict[str, Result] = {}
    if rounds > 2:
        copies = {name: sweep / "attacked" / name / f"{target}-{seed}" for name in FULL if name in methods}
        for name, copy in copies.items():
            if not copy.exists():
                shutil.copytree(run_of(name), copy, ignore=shutil.ignore_patterns("attacks"))
        one, *others = copies.values()
        _round("full", [[one], others], workers, like={target: one})
        full = {name: read(copy) for name, copy in copies.items()}
    stored = read_attacks(leader / "attacks")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "packages": versions(),
        "target": target,
        "seed": seed,
        "best": best,
        "kept": {name: kept(table, name) for name in methods},
        "baselines": {
            who: {name: summary(rows[who], rows.get("oracle")) for name, rows in stored.items() if who in rows}
            for who in ("base", "prefix", "oracle")
        },
        "runs": runs,
        "full": full,
    }


def attack_robust(robust: Path, sweep: Path, workers: int) -> Result:
    """The suite `standard` on the finished tests of the second sweep, beside base and oracle of the first."""
    table, first = (json.loads((one / "results.json").read_text(encoding="utf-8")) for one in (robust, sweep))
    names = [one["name"] for one in table["methods"] if not one["failed"]]
    test, leader = table["protocol"]["test"], sweep / "test" / first["methods"][0]["name"]
    like = {target: leader / f"{target}-{test['seeds'][0]}" for target in test["targets"]}
    runs = {name: sorted(done.parent for done in robust.glob(f"test/{name}/*/row.json")) for name in names}
    _round("standard", [[path for paths in runs.values() for path in paths]], workers, like=like)
    found = {name: {path.name: read(path) for path in paths} for name, paths in runs.items()}
    return {"kept": {name: kept(table, name) for name in names}, "runs": found}


def _round(suite: str, waves: Sequence[Sequence[Path]], workers: int, *, like: Mapping[str, Path]) -> None:
    """`duet attack` on runs, wave by wave: the first makes what the others take over."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

    def one(path: Path) -> None:
        leader = like.get(path.name.rsplit("-", 1)[0])
        options = ["--like", str(leader)] if leader and leader != path else []
        command = [sys.executable, "-m", "duet_unlearn", "attack", str(path), "--suite", suite, *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{path}: {done.stderr.strip()}")
        print(f"{suite}: {path.parent.name} {path.name}", file=sys.stderr, flush=True)

    for wave in waves:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, wave))


def read(run: Path) -> Result:
    """Attack -> what it came to, of a run's student."""
    return {
        attack: summary(rows["student"], rows.get("oracle"))
        for attack, rows in read_attacks(run / "attacks").items()
        if "student" in rows
    }


def summary(stored: Mapping[str, Any], oracle: Mapping[str, Any] | None) -> Result:
    """What the page shows of one attack."""
    result = from_json(stored)
    best = finding(result, from_json(oracle) if oracle else None)
    known = {
        "title": stored["title"],
        "access": stored["access"],
        "metric": stored["metric"],
        "status": stored["status"],
    }
    known |= {"reason": stored["reason"]} if stored["reason"] else {}
    known |= {"tokens": stored["cost"]["tokens"], "seconds": round(stored["cost"]["seconds"], 1)}
    if best is None:
        return known
    strongest = {
        "instance": best.instance.name,
        "score": rounded(best.instance.score.value),
        "n": best.instance.score.n,
    }
    above = [rounded(one) for one in (best.above.value, best.above.low, best.above.high)]
    return known | strongest | {"above": above, "any": rounded(result.best_of_all.value)}


def rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def kept(table: Mapping[str, Any], method: str) -> float:
    """The smallest share of what the base knew that a method keeps, over the sets that must stay."""
    sets = table["summary"][method]["sets"]
    base = [one["base"]["scores"] for one in table["baselines"].values()]
    shares = []
    for name in KEPT_SETS:
        before = fmean(scores[name]["right"]["value"] for scores in base)
        shares.append(sets[name]["mean"] / before)
    return round(min(shares), 4)


def choose(found: Mapping[str, Result], keep: Mapping[str, float]) -> list[str]:
    """The five methods that give least away among those that keep enough: in the worst case; of equals, to whoever has
    no weights; and so on. Of two that leave the same student (both variants of SHRED here) the first."""
    fit = [name for name in found if keep[name] >= KEEPS]
    order = sorted(fit, key=lambda name: [worst(found[name], ACCESS[:end])[0] for end in range(len(ACCESS), 0, -1)])
    students: dict[str, str] = {}
    for name in order:
        students.setdefault(json.dumps([found[name][one].get("above") for one in sorted(found[name])]), name)
    return [*students.values()][:BEST]


# Reading -------------------------------------------------------------------------------------------------------------


def leaks(attacks: Mapping[str, Any], access: Sequence[str] = ACCESS) -> dict[str, float]:
    """Attack -> share of the facts that came back above the oracle's luck, of those that count facts."""
    return {
        name: one["above"][0]
        for name, one in attacks.items()
        if one["metric"] == "right" and "above" in one and one["access"] in access
    }


def worst(attacks: Mapping[str, Any], access: Sequence[str] = ACCESS) -> tuple[float, str]:
    """The largest leak, and the attack; nothing measured is NaN."""
    found = leaks(attacks, access)
    name = max(found, key=found.__getitem__, default="")
    return (found[name], name) if name else (math.nan, "")


def front(attacks: Mapping[str, Any], num_facts: int) -> list[tuple[float, float]]:
    """(tokens a fact, the largest leak of attacks that cost no more), where it rises."""
    points = sorted(
        (one["tokens"] / num_facts, one["above"][0])
        for one in attacks.values()
        if one["metric"] == "right" and "above" in one
    )
    rising: list[tuple[float, float]] = []
    for tokens, leak in points:
        if not rising or leak > rising[-1][1]:
            rising.append((tokens, max(0.0, leak)))
    return rising


def tables(found: Result) -> str:
    """The part of the page between the marks."""
    target = f"{found['target']}-{found['seed']}"
    head = ["method", "kept", *(WORDS[one] for one in ACCESS), "worst case", "by"]
    rows = [["base + prefix", "", *_cells(found["baselines"]["prefix"])]]
    order = sorted(found["runs"], key=lambda name: worst(found["runs"][name][target])[0])
    rows += [[name, f"{100 * found['kept'][name]:.0f}", *_cells(found["runs"][name][target])] for name in order]
    parts = [
        f"By `python benchmarks/attacked.py`, {found['date']}, torch {found['packages']['torch']},"
        f" story {found['target']}, seed {found['seed']}.",
        _table(head, rows),
        _spread(found),
        _each(found, target, order),
        _full(found),
        _robust(found),
    ]
    return "\n\n".join(filter(None, parts))


def _cells(attacks: Mapping[str, Any]) -> list[str]:
    most, name = worst(attacks)
    return [
        *(_points(worst(attacks, [one])[0]) for one in ACCESS),
        _points(most),
        attacks[name]["title"] if name else "",
    ]


def _spread(found: Result) -> str:
    """The best methods over stories and seeds; nothing where that was not measured."""
    if all(len(found["runs"][name]) == 1 for name in found["best"]):
        return ""
    head = ["method", "runs", *(WORDS[one] for one in ACCESS), "worst case"]
    rows = []
    for name in found["best"]:
        runs = list(found["runs"][name].values())
        rows.append([name, str(len(runs)), *_leaks(runs)])
    return "The five that keep at least 90 % and give least away, over stories and seeds:\n\n" + _table(head, rows)


def _leaks(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A cell for each access and one for the worst case, means over runs."""
    by = [[worst(one, [access])[0] for one in runs] for access in ACCESS] + [[worst(one)[0] for one in runs]]
    return [_mean(values) for values in by]


def _each(found: Result, target: str, order: Sequence[str]) -> str:
    """Every attack on some methods."""
    shown = [name for name in order if name in {*found["best"], *FULL}]
    attacks = {name: one for who in shown for name, one in found["runs"][who][target].items()}
    head = ["attack", "needs", "base", "base + prefix", "oracle", *shown]
    rows = []
    for name, one in sorted(attacks.items(), key=lambda pair: ACCESS.index(pair[1]["access"])):
        others = [found["baselines"][who].get(name) for who in ("base", "prefix", "oracle")]
        mine = [found["runs"][who][target].get(name) for who in shown]
        rows.append([one["title"], WORDS[one["access"]], *(_score(cell) for cell in (*others, *mine))])
    return "Each attack's strongest instance, per cent of the facts; AUC or bits where it says so:\n\n" + _table(
        head, rows
    )


def _full(found: Result) -> str:
    """The suite `full`; nothing where that was not measured."""
    if not found["full"]:
        return ""
    head = ["method", *(WORDS[one] for one in ACCESS), "worst case", "by"]
    rows = [[name, *_cells(attacks)] for name, attacks in found["full"].items()]
    return "The suite `full`, with all instances and longer searches:\n\n" + _table(head, rows)


def _robust(found: Result) -> str:
    """What was made to be hard to bring back, beside the methods it is made of; nothing where it was not measured."""
    if "robust" not in found:
        return ""
    beside = {name: runs for name, runs in found["runs"].items() if name in FULL and len(runs) > 1}
    shares = found["kept"] | found["robust"]["kept"]
    head = ["method", "runs", "kept", *(WORDS[one] for one in ACCESS), "worst case"]
    rows = [
        [name, str(len(runs)), f"{100 * shares[name]:.0f}", *_leaks(list(runs.values()))]
        for name, runs in (found["robust"]["runs"] | beside).items()
    ]
    return "Made to be hard to bring back, over the same stories and seeds:\n\n" + _table(head, rows)


def _score(cell: Mapping[str, Any] | None) -> str:
    if cell is None or cell.get("score") is None:
        return {"failed": "failed", "not applicable": "n/a"}.get((cell or {}).get("status", ""), "-")
    value = cell["score"]
    return {"right": f"{100 * value:.0f}", "auc": f"{value:.2f} AUC", "bits": f"{value:.1f} bits"}[cell["metric"]]


def _points(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * max(0.0, value):.0f}"


def _mean(values: Sequence[float]) -> str:
    known = [100 * max(0.0, value) for value in values if not math.isnan(value)]
    if not known:
        return "n/a"
    return f"{fmean(known):.0f} ± {stdev(known):.0f}" if len(known) > 1 else f"{known[0]:.0f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = [":---" if name in ("method", "attack", "needs", "by") else "---:" for name in head]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, marks, *rows])


def draw(found: Result, path: Path) -> None:
    """Leak against cost: what the dearest attack that somebody can pay brings back."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "attacked", "font.family": "sans-serif", "font.size": 10}
    import matplotlib.pyplot as plt

    target = f"{found['target']}-{found['seed']}"
    runs = found["runs"] | found.get("robust", {}).get("runs", {})
    shown = {name: runs[name] for name in dict.fromkeys([*FULL, *found["best"], "robust"]) if name in runs}
    subjects = {"base + prefix": found["baselines"]["prefix"]} | {name: runs[target] for name, runs in shown.items()}
    num_facts = max(one.get("n", 1) for one in found["baselines"]["base"].values() if one["metric"] == "right")
    colours = [
        "#b45309",
        *(
            plt.get_cmap("viridis")(0.02 + 0.86 * place / max(1, len(subjects) - 2))
            for place in range(len(subjects) - 1)
        ),
    ]
    figure, axes = plt.subplots(figsize=(8.4, 4.4), layout="constrained")
    end = max((tokens for attacks in subjects.values() for tokens, _ in front(attacks, num_facts)), default=1.0) * 2
    for (name, attacks), colour in zip(subjects.items(), colours, strict=True):
        points = front(attacks, num_facts)
        if not points:
            continue
        xs, ys = [x for x, _ in points] + [end], [100 * y for _, y in points] + [100 * points[-1][1]]
        axes.step(xs, ys, where="post", color=colour, lw=2, label=name)
        axes.plot(xs[:-1], ys[:-1], "o", color=colour, ms=4)
    axes.set_xscale("log")
    axes.set(xlabel="tokens through the model for each fact (log)", ylabel="facts that came back, above the oracle (%)")
    axes.set_ylim(-3, 103)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def render(found: Result) -> None:
    """Page and picture."""
    draw(found, PICTURE)
    PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), tables(found), "attacked"), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", nargs="?", type=Path, help="folder of a finished `duet sweep lab`")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="1: every method on one story; 2: the best on all; 3: full; 0: none, keep what was found",
    )
    parser.add_argument("--robust", type=Path, help="folder of a `duet sweep benchmarks/robust.yaml`")
    parser.add_argument("--render-only", action="store_true")
    args = parser.parse_args()
    if not args.render_only:
        if args.sweep is None:
            parser.error("name the sweep's folder")
        known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        found = known | (attack_all(args.sweep, args.workers, args.rounds) if args.rounds else {})
        if args.robust:
            found["robust"] = attack_robust(args.robust, args.sweep, args.workers)
        atomic_write_json(RESULTS, found)
    render(json.loads(RESULTS.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
