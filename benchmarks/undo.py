"""UNDO's own experiment in small: keep plus and minus, forget times and divided by, then relearn (arXiv 2506.06278).

python benchmarks/undo.py             half an hour on one core; goes on where it was stopped
python benchmarks/undo.py --show      the tables and docs/undo.svg again, from results/undo.json
python benchmarks/undo.py --tiny      seconds, for the tests

Three seeds. The first stage is MaxEnt on every problem of the two operations, in words and as an equation, against
cross entropy on the other two and on general facts. Then UNDO at five alphas distils on samples of the model's own
pretraining, with that pretraining's optimiser at its highest rate, until plus, minus and facts are answered right as
often as 95 % of the teacher's. Every model then relearns half of the forgotten problems and is measured on the other
half, which shares no pair of numbers with the first, and on all; at each step the worst rate counts. Compute is
counted against the pretraining as it was, and against a model trained from random weights, never shown the two
operations, up to the same goal.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from pages import between

from duet_unlearn.attacks import relearn, worst
from duet_unlearn.config.sections import TrainConfig
from duet_unlearn.data.examples import Example, Source, TrainingData, epochs_source, render_examples
from duet_unlearn.data.files import atomic_write_json
from duet_unlearn.data.prompts import Prefix
from duet_unlearn.data.query import Query
from duet_unlearn.evals.generate import share_right
from duet_unlearn.evals.summaries import undo_recovery
from duet_unlearn.lab import language
from duet_unlearn.lab.pretraining import (
    ARITHMETIC_SETTINGS,
    OPERATIONS,
    SIGNS,
    Encoder,
    Operation,
    arithmetic_queries,
    new_model,
    new_tokenizer,
    problems,
)
from duet_unlearn.lab.pretraining import draw_arithmetic as read
from duet_unlearn.lab.questions import held_out_queries, open_query
from duet_unlearn.lab.references import load, model_path
from duet_unlearn.lab.world import Fact, world
from duet_unlearn.methods.self_distillation import MaxEnt
from duet_unlearn.methods.undo import Undo, add_noise
from duet_unlearn.models.load import load_model, save_model
from duet_unlearn.teacher.targets import LiveTargets
from duet_unlearn.training.loop import Loss, TargetsFn, train
from duet_unlearn.training.step import fine_tuning_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
FORGET: tuple[Operation, ...] = ("times", "divided by")
KEEP: tuple[Operation, ...] = ("plus", "minus")
MEASURES = ("other", "all")
"""The forgotten problems that were not shown again, and all of them."""
NO_PREFIX = Prefix("")
Result = dict[str, Any]


FIRST = TrainConfig(rate=3e-3, epochs=5, batch_size=32, schedule="linear", checkpoint_every=0)
LATE = 10
"""Steps of relearning before which the unlearned model has little back, and robustness is a ratio of noises."""


@dataclass(frozen=True)
class Setting:
    """Everything that decides the figures."""

    seeds: tuple[int, ...] = (0, 1, 2)
    alphas: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 0.9)
    beta: float = 0.1
    fresh: tuple[float, ...] = (0.8,)
    """Alphas that are tried with noise of a fresh model's size too: beta 1."""
    first: TrainConfig = FIRST
    texts: int = 20_000
    most_steps: int = 1500
    """Distilling ends here even where its goal is not met."""
    batch_size: int = 64
    look_every: int = 20
    stop_at: float = 0.95
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    steps: tuple[int, ...] = (0, 5, 10, 20, 40, 80, 160)
    relearn_batch: int = 16


TINY = Setting(
    seeds=(0,),
    alphas=(0.5,),
    fresh=(),
    first=TrainConfig(rate=1e-3, epochs=1, batch_size=400, checkpoint_every=0),
    texts=64,
    most_steps=2,
    batch_size=32,
    look_every=1,
    rates=(1e-3, 3e-3),
    steps=(0, 10),
)


# What is asked -------------------------------------------------------------------------------------------------------


def equations(operation: Operation) -> list[Query]:
    """Every problem of an operation as raw text."""
    sign = SIGNS[operation]
    return [
        Query(f"{sign}/{a}-{b}", ({"role": "text", "content": f"{a} {sign} {b} ="},), answer=str(c), value=str(c))
        for a, b, c in problems(operation)
    ]


def forgotten() -> list[Query]:
    """What is to be forgotten, as questions."""
    return [query for operation in FORGET for query in arithmetic_queries(operation)]


def halves(seed: int) -> tuple[list[Query], list[Query]]:
    """The forgotten questions in two halves, the first to be shown: no two numbers are multiplied in both."""
    pairs = sorted({tuple(sorted((a, b))) for a, b, _ in problems("times")})
    shown = set(random.Random(f"halves/{seed}").sample(pairs, len(pairs) // 2))
    both: tuple[list[Query], list[Query]] = ([], [])
    for operation in FORGET:
        for query, (a, b, c) in zip(arithmetic_queries(operation), problems(operation), strict=True):
            pair = tuple(sorted((a, b) if operation == "times" else (b, c)))
            both[pair not in shown].append(query)
    return both


def general() -> list[Fact]:
    """General facts other than sums and differences: what plays the part of language."""
    return [fact for subject, facts in world().general.items() if subject != "arithmetic" for fact in facts]


def facts() -> list[Query]:
    """Some of them in wordings that no stage trains on as questions to keep."""
    return held_out_queries(general(), limit=60)


def kept() -> list[Query]:
    """What must stay."""
    return [query for operation in KEEP for query in arithmetic_queries(operation)] + facts()


# The three stages ----------------------------------------------------------------------------------------------------


def unlearn(setting: Setting, seed: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Result:
    """MaxEnt, in place; what it cost."""
    forget, retain = (
        [query for operation in these for query in (*arithmetic_queries(operation), *equations(operation))]
        for these in (FORGET, KEEP)
    )
    retain += [open_query(fact, language.QUESTIONS[fact.attribute].train[0], split="train") for fact in general()]
    method, config = MaxEnt(retain="ce"), setting.first
    examples = _examples(method.build_examples(TrainingData(forget, retain, NO_PREFIX)), tokenizer)
    source, steps = epochs_source(examples, batch_size=config.batch_size, epochs=config.epochs, seed=seed)
    return _train(model, tokenizer, source, steps, method.loss, None, config, seed)


def distil(
    setting: Setting, seed: int, method: Undo, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, Result]:
    """UNDO's two stages; the student, and what it cost."""
    goal = setting.stop_at * share_right(teacher, tokenizer, kept())
    student = copy.deepcopy(teacher).requires_grad_(True)
    add_noise(student, alpha=method.alpha, beta=method.beta, seed=seed)
    texts = load(f"lab:arithmetic/{setting.texts}")
    examples = _examples(method.build_examples(TrainingData((), (), NO_PREFIX, texts=texts)), tokenizer)
    epochs = -(-setting.most_steps * setting.batch_size // len(examples))
    source, _ = epochs_source(examples, batch_size=setting.batch_size, epochs=epochs, seed=seed)
    live = LiveTargets(teacher.requires_grad_(False), method.target_spec, lambda batch: {})
    return student, _up_to(goal, setting, student, tokenizer, source, method.loss, live, seed)


def retrain(setting: Setting, seed: int, tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedModel, Result]:
    """A model from random weights that reads plus, minus and facts alone, up to the goal of the others."""
    encode, model = Encoder(tokenizer), new_model(tokenizer, replace(ARITHMETIC_SETTINGS, seed=seed))

    def source(step: int) -> list[Example]:
        rng = random.Random(f"retrain/{seed}/{step}")
        rows = [encode(read(OPERATIONS["plus-minus"], rng)) for _ in range(setting.batch_size)]
        return [Example(tuple(i), tuple(p), tuple(t), "retain", f"{step}/{n}") for n, (i, p, t) in enumerate(rows)]

    return model, _up_to(setting.stop_at, setting, model, tokenizer, source, fine_tuning_loss, None, seed)


def _up_to(
    goal: float,
    setting: Setting,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    loss: Loss,
    targets: TargetsFn | None,
    seed: int,
) -> Result:
    """Train as pretraining did, at a constant rate, until so many answers are right; what it cost."""
    config = replace(ARITHMETIC_SETTINGS.train, batch_size=setting.batch_size, schedule="constant", checkpoint_every=0)
    looks: list[tuple[int, float]] = []

    def done(step: int) -> bool:
        if step % setting.look_every == 0:
            looks.append((step, share_right(model, tokenizer, kept(), batch_size=128)))
        return bool(looks) and looks[-1][1] >= goal

    cost = _train(model, tokenizer, source, setting.most_steps, loss, targets, config, seed, done)
    return cost | {"goal": goal, "looks": looks, "met": looks[-1][1] >= goal}


def _examples(asked: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    return render_examples(tokenizer, asked)


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    steps: int,
    loss: Loss,
    targets: TargetsFn | None,
    config: TrainConfig,
    seed: int,
    done: Callable[[int], bool] = lambda step: False,
) -> Result:
    """Train until it is done; steps, tokens, and processor seconds without those of looking."""
    tokens = taken = 0
    seconds, begun = 0.0, time.process_time()
    logs = train(
        model,
        source=source,
        num_steps=steps,
        loss=loss,
        targets=targets,
        config=config,
        pad_id=int(tokenizer.pad_token_id or 0),
        seed=seed,
    )
    for log in logs:
        seconds += time.process_time() - begun
        tokens, taken = tokens + log.tokens, log.step
        if done(log.step):
            break
        begun = time.process_time()
    model.eval()
    return {"steps": taken, "tokens": tokens, "cpu_seconds": round(seconds, 1)}


def measure(setting: Setting, seed: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Result:
    """What a model knows, and how fast what it forgot comes back."""
    shown, other = halves(seed)

    def knowledge(now: PreTrainedModel) -> Mapping[str, float]:
        mine, rest = (share_right(now, tokenizer, half, batch_size=128) for half in (shown, other))
        return {"other": rest, "all": (mine * len(shown) + rest * len(other)) / (len(shown) + len(other))}

    points = relearn(
        model,
        tokenizer,
        shown,
        measure=knowledge,
        rates=setting.rates,
        steps=setting.steps,
        batch_size=setting.relearn_batch,
        seed=seed,
    )
    curve = list(points)
    knows = {name: share_right(model, tokenizer, arithmetic_queries(name)) for name in (*KEEP, *FORGET)}
    return {
        "knows": knows | {"facts": share_right(model, tokenizer, facts())},
        "relearned": {
            name: {str(step): [point.knowledge[name], point.rate] for step, point in worst(curve, name).items()}
            for name in MEASURES
        },
        "curve": [[point.rate, point.step, *(point.knowledge[name] for name in MEASURES)] for point in curve],
    }


# All of it -----------------------------------------------------------------------------------------------------------


def run(setting: Setting, work: Path) -> Result:
    """Every subject of every seed; what is there already is read."""
    found: dict[str, list[Result]] = {}
    for seed in setting.seeds:
        for name, of in subjects(setting, seed, work / f"seed-{seed}").items():
            file = work / f"seed-{seed}" / f"{name}.json"
            if not file.exists():
                atomic_write_json(file, of())
                print(f"seed {seed} {name}: {line(json.loads(file.read_text('utf-8')))}", file=sys.stderr, flush=True)
            found.setdefault(name, []).append(json.loads(file.read_text(encoding="utf-8")))
    pretraining = pretraining_tokens()
    for name, results in found.items():
        for result, first, again in zip(results, found["unlearned"], found["retrained"], strict=True):
            if tokens := tokens_of(name, result, first):
                result["compute"] = {"pretraining": tokens / pretraining, "retraining": tokens / again["tokens"]}
    return {"setting": asdict(setting), "pretraining_tokens": pretraining, "subjects": found}


def subjects(setting: Setting, seed: int, folder: Path) -> dict[str, Callable[[], Result]]:
    """Name -> how its figures are made; in an order in which each finds what it stands on."""
    first = folder / "first"

    def packaged(name: str) -> Callable[[], Result]:
        return lambda: measure(setting, seed, *load_model(str(model_path(f"lab:{name}"))))

    def unlearned() -> Result:
        model, tokenizer = load_model(str(model_path("lab:arithmetic")))
        cost = unlearn(setting, seed, model, tokenizer)
        save_model(model, tokenizer, first)
        return cost | measure(setting, seed, model, tokenizer)

    def undone(alpha: float, beta: float) -> Callable[[], Result]:
        def of() -> Result:
            teacher, tokenizer = load_model(str(first))
            student, cost = distil(setting, seed, Undo(alpha=alpha, beta=beta), teacher, tokenizer)
            return cost | measure(setting, seed, student, tokenizer)

        return of

    def retrained() -> Result:
        tokenizer = new_tokenizer()
        model, cost = retrain(setting, seed, tokenizer)
        return cost | measure(setting, seed, model, tokenizer)

    ours = {f"undo-{alpha:g}": undone(alpha, setting.beta) for alpha in setting.alphas}
    ours |= {f"undo-{alpha:g}, beta 1": undone(alpha, 1.0) for alpha in setting.fresh}
    return {"unlearned": unlearned} | ours | {"retrained": retrained, "oracle": packaged("plus-minus")}


def pretraining_tokens() -> int:
    """Tokens that the model of all four operations read, by the mean length of its samples."""
    texts = load("lab:arithmetic/2000")
    examples = _examples(Undo().build_examples(TrainingData((), (), NO_PREFIX, texts=texts)), new_tokenizer())
    return round(
        fmean(len(one.ids) for one in examples) * ARITHMETIC_SETTINGS.num_steps * ARITHMETIC_SETTINGS.batch_size
    )


def tokens_of(name: str, result: Result, first: Result) -> float | None:
    """Tokens in operations of training: a student's count 1, a teacher's a third, unlearning's too; None of the oracle,
    which is packaged."""
    if name in ("oracle", "unlearned", "retrained"):
        return result.get("tokens")
    return first["tokens"] + result["tokens"] * 4 / 3


def line(result: Result) -> str:
    """A result in one line."""
    other = [f"{value[0]:.2f}" for value in result["relearned"]["other"].values()]
    return f"{result.get('steps', 0)} steps; {result['knows']}; the other half relearned {' '.join(other)}"


# Tables and picture --------------------------------------------------------------------------------------------------


def robustness(found: Result, name: str) -> list[float]:
    """UNDO's robustness of a subject on the other half, a value a seed: the mean over the steps from ``LATE`` on."""
    values = []
    for mine, low, high in zip(*(found["subjects"][key] for key in (name, "unlearned", "oracle")), strict=True):
        shares = [[one["relearned"]["other"][str(step)][0] for one in (mine, low, high)] for step in late(found)]
        values.append(fmean(undo_recovery(p, unlearned=least, oracle=best) for p, least, best in shares))
    return values


def late(found: Result) -> list[int]:
    return [step for step in found["setting"]["steps"] if step >= LATE]


def tables(found: Result) -> str:
    """Two tables in Markdown, in per cent: means over the seeds, with the smallest and the largest."""
    steps = [str(step) for step in found["setting"]["steps"]]
    head = [
        "",
        "plus, minus",
        "facts",
        "of pretraining",
        "of retraining",
        *(f"{step} steps" for step in steps),
        "robustness",
    ]
    rows = {name: [head, ["---"] * len(head)] for name in MEASURES}
    for name, results in found["subjects"].items():
        keep = [fmean(one["knows"][o] for o in KEEP) for one in results]
        fixed = [name, _spread(keep), _spread([one["knows"]["facts"] for one in results])]
        for against in ("pretraining", "retraining"):
            fixed.append("" if name == "oracle" else _spread([one["compute"][against] for one in results]))
        for measured, table in rows.items():
            relearned = [_spread([one["relearned"][measured][step][0] for one in results]) for step in steps]
            table.append([*fixed, *relearned, _spread(robustness(found, name))])
    return "\n\n".join(
        f"Measured on {name}:\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in table)
        for name, table in rows.items()
    )


def _spread(values: Sequence[float]) -> str:
    low, middle, high = (round(100 * one) for one in (min(values), fmean(values), max(values)))
    return f"{middle}" if low == high else f"{middle} ({low} to {high})"


def draw(found: Result, path: Path) -> None:
    """Relearning curves, and robustness against compute, as an SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "undo", "font.family": "sans-serif", "font.size": 10}
    import matplotlib.pyplot as plt

    steps = found["setting"]["steps"]
    names = [name for name in found["subjects"] if name.startswith("undo")]
    shade = plt.get_cmap("viridis")
    colours = {name: shade(0.05 + 0.8 * place / max(1, len(names) - 1)) for place, name in enumerate(names)}
    colours |= {"unlearned": "#c0392b", "retrained": "#888888", "oracle": "#222222"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.0), layout="constrained", width_ratios=(3, 2))
    for name in ("unlearned", *names, "retrained", "oracle"):
        shares = [[100 * one["relearned"]["other"][str(step)][0] for step in steps] for one in found["subjects"][name]]
        means = [fmean(values) for values in zip(*shares, strict=True)]
        left.plot(range(len(steps)), means, color=colours[name], marker="o", ms=3.5, label=label(name))
        low, high = ([pick(values) for values in zip(*shares, strict=True)] for pick in (min, max))
        left.fill_between(range(len(steps)), low, high, color=colours[name], alpha=0.12, lw=0)
    left.set_xticks(range(len(steps)), [str(step) for step in steps])
    left.set(xlabel="steps of relearning on the other problems", ylabel="problems never shown again, right (%)")
    left.set_ylim(0, 100)
    left.legend(frameon=False, fontsize=8.5, loc=(0.5, 0.24))
    for name in (*names, "retrained"):
        reached, cost = robustness(found, name), [one["compute"]["retraining"] for one in found["subjects"][name]]
        right.plot(100 * fmean(cost), 100 * fmean(reached), "o", color=colours[name])
        place = (100 * fmean(cost), 100 * fmean(reached))
        below = ", beta" in name  # beside the same alpha with less noise
        right.annotate(
            name.removeprefix("undo-"), place, (0, -16 if below else 7), textcoords="offset points", ha="center"
        )
    right.set(xlabel="compute, % of retraining up to the same goal", ylabel="robustness, % of the way to the oracle")
    right.set_xlim(left=0)
    right.set_ylim(-20, 115)
    for one in (left, right):
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def label(name: str) -> str:
    """A subject's name in the picture."""
    told = {
        "unlearned": "unlearned only (MaxEnt)",
        "oracle": "oracle: never knew",
        "retrained": "retrained, stopped as the others",
    }
    return told.get(name) or f"UNDO, alpha {name.removeprefix('undo-')}"


def write_page(found: Result, page: Path) -> None:
    """Put the tables between the marks of a page."""
    page.write_text(between(page.read_text(encoding="utf-8"), tables(found), "undo"), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a step or two of everything, for the tests")
    parser.add_argument("--show", action="store_true", help="train nothing; tables and picture from the results")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "undo", help="where models and parts lie")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "undo.md", help="page with the tables")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "undo.json", help="JSON file")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "undo.svg")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.show:
        atomic_write_json(args.out, run(TINY if args.tiny else Setting(), args.work))
    found = json.loads(args.out.read_text(encoding="utf-8"))
    draw(found, args.picture)
    write_page(found, args.page)
    print(tables(found))


if __name__ == "__main__":
    main()
