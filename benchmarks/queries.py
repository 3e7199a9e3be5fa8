"""Does DUET forget as well from extracted queries as from hand-made ones?

python benchmarks/queries.py            two seeds, ten minutes on 2 cores; writes results/queries.json
python benchmarks/queries.py --seeds 1  half of it

For each of the lab's three stories a corpus is written: its sentences as prose, a paragraph a character, without the
facts that the benchmark keeps unseen (35 of 60). `duet queries` with lab:base draws 100 queries from it. `duet run`
forgets the story once from them and once from the benchmark's own 100, which ask about 25 of the 35; recipe and retain
queries are the same. lab:base has read how to turn a line into a question on other stories, never on these three.

Reported: the share of right answers on held-out wordings of both, and how many extracted questions are word by word
questions of the lab about a fact of the story (nobody needs them to be; it is a strict count of what is usable).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).resolve().parent
RECIPES = {"amber-gate": "lab/duet", "silver-mill": "lab/silver-mill", "hollow-clock": "lab/hollow-clock"}
INSTRUCTIONS = ("Write a question about this: {passage}", "Ask something about this line: {passage}")
"""The wordings by which lab:base was taught to write questions; it knows no longer ones."""
SETS = ("forget", "forget_held_out", "forget_unseen", "near", "far", "retain", "general")
COUNT = 100


def write_corpus(target: str, path: Path) -> None:
    """The story as prose, without its unseen facts."""
    from duet_unlearn.lab.language import statement
    from duet_unlearn.lab.questions import TARGETS, split_facts

    facts = split_facts(TARGETS[target])
    people: dict[str, list[str]] = {}
    for fact in (*facts["train"], *facts["validation"]):
        people.setdefault(fact.entity, []).append(statement(fact))
    path.write_text("\n\n".join(" ".join(sentences) for sentences in people.values()) + "\n", encoding="utf-8")


def extract(target: str, work: Path) -> dict[str, Any]:
    """`duet queries` on a story's corpus: what it reports, and the strict count."""
    from duet_unlearn.lab.questions import TARGETS

    corpus, out, report = (work / f"{target}.{kind}" for kind in ("txt", "jsonl", "coverage.json"))
    if not report.exists():
        write_corpus(target, corpus)
        command = ["queries", str(corpus), "--concept", f"the story {TARGETS[target]}", "--model", "lab:base"]
        command += [
            "--out",
            str(out),
            "--count",
            str(COUNT),
            "--chunk",
            "1",
            "--passes",
            "30",
            "--max-new-tokens",
            "24",
        ]
        command += [word for text in INSTRUCTIONS for word in ("--instruction", text)]
        report.write_text(duet([*command, "--json"]), encoding="utf-8")
    coverage = json.loads(report.read_text(encoding="utf-8"))
    questions = [json.loads(line)["messages"][0]["content"] for line in out.read_text(encoding="utf-8").splitlines()]
    known = lab_questions(target)
    facts = {known[question] for question in questions if question in known}
    strict = sum(question in known for question in questions)
    return {"kept": coverage["kept"], "strict": strict, "facts": len(facts), "dropped": coverage["dropped"]}


def lab_questions(target: str) -> dict[str, str]:
    """Every question of the lab about a fact of the story -> the fact."""
    from duet_unlearn.lab.language import QUESTIONS, question
    from duet_unlearn.lab.questions import TARGETS
    from duet_unlearn.lab.world import world

    facts = world().topics()[TARGETS[target]]
    return {question(fact, wording): fact.key for fact in facts for wording in QUESTIONS[fact.attribute].all}


def forget(target: str, seed: int, source: str, work: Path) -> dict[str, float]:
    """`duet run` from the `extracted` or the `hand-made` queries; share of right answers of the student by set."""
    folder = work / f"{target}-{source}-seed-{seed}"
    settings = {"seed": str(seed)}
    if source == "extracted":
        settings |= {"data.forget": str(work / f"{target}.jsonl"), "evaluate.target": target}
    duet(
        ["run", RECIPES[target], "--out", str(folder), *(w for k, v in settings.items() for w in ("--set", f"{k}={v}"))]
    )
    scores = json.loads((folder / "evals" / "student.json").read_text(encoding="utf-8"))["scores"]
    return {name: scores[name]["right"]["value"] for name in SETS}


def duet(arguments: Sequence[str]) -> str:
    """What a `duet` command prints; its last words if it failed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "duet_unlearn", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"duet {' '.join(arguments)}\n{done.stderr}")
    return done.stdout


def table(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Source -> set -> mean over stories and seeds, and the difference in points."""
    means = {
        source: {name: fmean(row["right"][name] for row in rows if row["source"] == source) for name in SETS}
        for source in ("hand-made", "extracted")
    }
    points = {name: 100 * (means["extracted"][name] - means["hand-made"][name]) for name in SETS}
    return means | {"difference in points": points}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/queries"), help="run folders; what is done is kept")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "queries.json")
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    plans = [(t, s, source) for s in range(args.seeds) for t in RECIPES for source in ("hand-made", "extracted")]
    with ThreadPoolExecutor(args.workers) as pool:
        extracted = dict(zip(RECIPES, pool.map(lambda target: extract(target, work), RECIPES), strict=True))
        right = list(pool.map(lambda plan: forget(*plan, work), plans))
    rows = [{"target": t, "seed": s, "source": w, "right": r} for (t, s, w), r in zip(plans, right, strict=True)]
    env = json.loads((work / "amber-gate-extracted-seed-0" / "env.json").read_text(encoding="utf-8"))
    result = {"date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    result |= {key: env[key] for key in ("packages", "python", "platform", "device", "threads")}
    result |= {"model": env["hashes"]["model"], "commit": env["commit"]}
    result |= {"extraction": extracted, "mean": table(rows), "runs": rows}
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name in SETS:
        cells = (f"{100 * result['mean'][source][name]:5.1f}" for source in ("hand-made", "extracted"))
        print(f"{name:16}", *cells, f"{result['mean']['difference in points'][name]:+5.1f}")
    for target, found in extracted.items():
        print(f"{target}: {found['kept']} kept, {found['strict']} of them word by word, {found['facts']} facts")


if __name__ == "__main__":
    main()
