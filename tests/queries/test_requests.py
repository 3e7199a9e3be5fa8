"""Deletion requests through a whole run: from queries with ids to scores for each of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from workplace import Done, Workplace

from duet_unlearn.config.reading import load_recipe


def test_a_run_and_evaluate_report_each_request(workplace: Workplace, duet: Callable[..., Done]) -> None:
    lines = [json.loads(line) for line in workplace.forget.read_text("utf-8").splitlines()]
    rows = [row | {"request": f"r-{number % 2}"} for number, row in enumerate(lines)]
    workplace.forget.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    done = duet("run", workplace.recipe, "--out", "run", "--set", "train.epochs=1")
    assert done.code == 0, done.err
    student = json.loads(Path("run/evals/student.json").read_text("utf-8"))
    asked = {request: sets["forget"]["right"]["n"] for request, sets in student["requests"].items()}
    assert asked == {"r-0": 3, "r-1": 3}
    assert "r-1" in Path("run/report.html").read_text("utf-8").partition('id="requests"')[2]
    found = json.loads(duet("evaluate", "run", "--json").out)
    assert found["student"]["requests"] == student["requests"]


def test_a_file_of_queries_may_be_measured_on_the_lab(workplace: Workplace, duet: Callable[..., Done]) -> None:
    from duet_unlearn.job import load_job

    settings = [f"data.forget={workplace.forget}", "evaluate.target=silver-mill"]
    sets = {one.name: one for one in load_job(load_recipe("lab/duet", settings)).suite()}
    assert {query.source for query in sets["forget_held_out"].queries} == {"Silver Mill"}
    done = duet("probe", "lab/duet", "--set", settings[0])
    assert "error: evaluate.suite is `lab`, but data.forget is" in done.err
    assert "evaluate.target" in done.err
    done = duet("probe", workplace.recipe, "--set", settings[1])
    assert "error: evaluate.target is silver-mill, but evaluate.suite is not `lab`" in done.err
    assert duet("probe", "lab/duet", "--set", settings[0], "--set", "evaluate.target=silver-mil").code == 1
