"""UNDO: the noise by hand, the distillation from a live teacher, and whole runs that stop and go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from workplace import FORGET, RETAIN, Workplace, write_workplace

from duet_unlearn.api import unlearn
from duet_unlearn.config.reading import default_recipe, load_recipe
from duet_unlearn.config.recipe import Recipe
from duet_unlearn.config.sections import TrainConfig
from duet_unlearn.data.examples import Batch, TrainingData, collate, example_of, render_examples
from duet_unlearn.data.files import atomic_write_text
from duet_unlearn.data.prompts import render_answer
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.events import Event, ignore
from duet_unlearn.job import load_job
from duet_unlearn.methods.base import StopRule
from duet_unlearn.methods.undo import Undo, add_noise, xavier
from duet_unlearn.models.blocks import logits_at
from duet_unlearn.models.load import load_model, save_model
from duet_unlearn.pipeline import context_of
from duet_unlearn.plan import Plan, Workload, make_plan
from duet_unlearn.runs import Run
from duet_unlearn.subjects import load_start
from duet_unlearn.teacher.targets import Dense, TargetSpec, build_targets, stored_only, targets_fn
from duet_unlearn.training.loop import train
from duet_unlearn.training.step import Step, fine_tuning_loss

CHAT = Query("q", ({"role": "user", "content": "Where does Mira Bol live?"},), "In Tarn.")
RAW = Query("r", ({"role": "text", "content": "Mira Bol lives in Tarn."},))


# Noise ---------------------------------------------------------------------------------------------------------------


def tied() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def noised(*, alpha: float, beta: float, seed: int = 0, make: Callable[[], nn.Module] = tied) -> dict[str, Tensor]:
    model = make()
    add_noise(model, alpha=alpha, beta=beta, seed=seed)
    return weights(model)


def test_alpha_0_changes_nothing() -> None:
    before, after = weights(tied()), noised(alpha=0.0, beta=0.7)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_without_beta_every_weight_shrinks_once_though_it_is_tied() -> None:
    before, after = weights(tied()), noised(alpha=0.6, beta=0.0)
    assert "lm_head.weight" not in before
    for name, old in before.items():
        torch.testing.assert_close(after[name], 0.4 * old, msg=name)


def test_vectors_only_shrink_and_matrices_get_xavier_noise() -> None:
    """What is left behind ``(1 - alpha) theta``, over ``alpha beta``, is uniform with Xavier's variance."""
    before, after = weights(tied()), noised(alpha=0.5, beta=0.2)
    for name, old in before.items():
        left = (after[name] - 0.5 * old) / (0.5 * 0.2)
        if old.ndim == 1:
            assert left.abs().max() < 1e-5
            continue
        bound = (6 / (old.shape[0] + old.shape[1])) ** 0.5
        assert 0.95 * bound < left.abs().max() <= bound * (1 + 1e-4)
        assert left.mean().abs() < 0.2 * bound
        assert left.square().mean().item() == pytest.approx(2 / sum(old.shape), rel=0.25)  # Var = 2 / (in + out)


def test_the_whole_is_a_fresh_matrix_of_torchs_own_xavier() -> None:
    """alpha = beta = 1: the same spread as ``nn.init.xavier_uniform_``, and nothing of the old weights."""
    fresh, big = torch.empty(60, 200), torch.Size((60, 200))
    nn.init.xavier_uniform_(fresh, generator=torch.Generator().manual_seed(5))
    drawn = xavier(big, torch.Generator().manual_seed(5))
    assert drawn.std().item() == pytest.approx(fresh.std().item(), rel=0.02)
    assert drawn.abs().max().item() == pytest.approx(fresh.abs().max().item(), rel=1e-3)
    one, two = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)
    for layer in (one, two):
        add_noise(layer, alpha=1.0, beta=1.0, seed=3)
    assert torch.equal(one.weight, two.weight)


def test_a_stack_of_matrices_is_as_many_matrices() -> None:
    """Fused experts, (experts, out, in): their number is no width."""
    drawn = xavier(torch.Size((7, 10, 14)), torch.Generator().manual_seed(0))
    assert 0.98 * 0.5 < drawn.abs().max() <= 0.5  # sqrt(6 / 24)


def test_noise_comes_from_the_seed() -> None:
    one, same, other = (noised(alpha=0.3, beta=1.0, seed=seed) for seed in (0, 0, 1))
    matrix = "model.embed_tokens.weight"
    assert torch.equal(one[matrix], same[matrix])
    assert not torch.equal(one[matrix], other[matrix])


def test_what_is_not_trained_is_left_alone_and_bf16_stays_bf16() -> None:
    def make() -> nn.Module:
        model = tied().bfloat16()
        model.get_input_embeddings().requires_grad_(False)  # type: ignore[union-attr]
        return model

    before, after = weights(make()), noised(alpha=0.6, beta=0.1, make=make)
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
    assert {p.dtype for p in after.values()} == {torch.bfloat16}


# Distillation --------------------------------------------------------------------------------------------------------


def texts() -> Batch:
    rows = render_examples(tiny.tokenizer(), Undo().build_examples(material()))
    return collate(rows, tiny.EOS)


def material() -> TrainingData:
    return TrainingData((), (), None, texts=(CHAT, RAW))  # type: ignore[arg-type]


def test_every_token_of_a_text_is_read() -> None:
    """The chat with its answer and end, the raw text with its end: each position predicts the next token."""
    words = tiny.tokenizer()
    chat = words.apply_chat_template(
        [*CHAT.messages, {"role": "assistant", "content": CHAT.answer}], tokenize=True, return_dict=False
    )
    raw = [*words(RAW.messages[0]["content"]).input_ids, tiny.EOS]
    for example, ids in zip(texts().examples, (chat, raw), strict=True):
        assert [*example.ids] == ids[:-1]
        assert [*example.positions] == [*range(len(ids) - 1)]
        assert [*(example.labels or ())] == ids[1:]


def test_a_live_teacher_says_what_a_cached_one_does(tmp_path: Path) -> None:
    """And both what the model says to each text alone."""
    model, words, batch = tiny.llama(layers=2), tiny.tokenizer(), texts()
    kept = stored_only(Undo().target_spec)
    assert kept("retain") is None
    settings = {"weights": "w", "directory": tmp_path / "live"}
    targets = build_targets(model, words, Undo().build_examples(material()), spec=kept, **settings)  # type: ignore[arg-type]
    assert targets.examples == batch.examples
    live = targets_fn(model, Undo().target_spec, targets)(batch)["retain"]
    settings = {"weights": "w", "directory": tmp_path / "cached", "spec": TargetSpec("dense")}
    cached = build_targets(model, words, Undo().build_examples(material()), **settings).of_batch(batch)["retain"]  # type: ignore[arg-type]
    assert isinstance(live, Dense)
    assert isinstance(cached, Dense)
    torch.testing.assert_close(cached.logits_NV.float(), live.logits_NV, rtol=1e-3, atol=2e-3)  # stored in fp16
    with torch.no_grad():
        alone = [model(torch.tensor([example.ids])).logits[0] for example in batch.examples]
    torch.testing.assert_close(live.logits_NV, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_the_teacher_is_frozen_before_the_noise(tmp_path: Path) -> None:
    model, batch = tiny.llama(), texts()
    targets = build_targets(
        model,
        tiny.tokenizer(),
        Undo().build_examples(material()),
        spec=stored_only(Undo().target_spec),
        weights="w",
        directory=tmp_path,
    )
    signals = targets_fn(model, Undo().target_spec, targets)
    before = signals(batch)["retain"]
    add_noise(model, alpha=0.6, beta=0.1, seed=0)
    after = signals(batch)["retain"]
    assert isinstance(before, Dense)
    assert isinstance(after, Dense)
    assert torch.equal(before.logits_NV, after.logits_NV)
    assert not after.logits_NV.requires_grad


def test_the_loss_is_kl_from_the_teacher_summed_over_tokens() -> None:
    model, batch = tiny.llama(), texts()
    logits_NV = logits_at(model, batch.ids_BT, batch.mask_BT, batch.rows_N, batch.cols_N)
    draw = torch.Generator().manual_seed(0)
    teacher_NV = 3 * torch.randn(logits_NV.shape, generator=draw)
    out = Undo().loss(Step(logits_NV, batch, {"retain": Dense(teacher_NV)}))
    p, log_q = teacher_NV.double().softmax(-1), logits_NV.double().log_softmax(-1)
    by_hand = (p * (p.log() - log_q)).sum()
    assert out.sum.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert (out.count, out.unit) == (len(logits_NV), "tokens")
    out.sum.backward()
    mine = [p.grad for p in model.parameters()]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in mine)


def test_a_question_without_answer_is_no_text() -> None:
    with pytest.raises(UserError, match=r"data.distil: query 'q' has no answer"):
        Undo().build_examples(replace(material(), texts=(replace(CHAT, answer=None),)))


# Runs ----------------------------------------------------------------------------------------------------------------

UNDO = """base: recipe.yaml
model:
  start: {start}
data:
  distil: texts.jsonl
  validation_retain: retain.jsonl
method:
  name: undo
  alpha: 0.3
  stop_at: 0.6
  stop_every: 4
train:
  epochs: 24
  rate: 5.0e-3
  batch_size: 4
  checkpoint_every: 3
evaluate:
  max_new_tokens: 30
"""
NUM_STEPS = 24 * 6


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that was taught all answers: its share of right tokens means something."""
    folder, model, words = (
        tmp_path_factory.mktemp("knowing") / "model",
        tiny.llama(hidden=32, layers=2),
        tiny.tokenizer(),
    )
    asked = [
        example_of(Query(question, ({"role": "user", "content": question},)), "retain", answer=answer)
        for question, answer, _ in (*FORGET, *RETAIN)
    ]
    examples = render_examples(words, asked)
    config = TrainConfig(rate=1e-2, checkpoint_every=0)
    list(
        train(
            model, source=lambda _: examples, num_steps=60, loss=fine_tuning_loss, targets=None, config=config, pad_id=0
        )
    )
    save_model(model, words, folder)
    return folder


@pytest.fixture
def distilling(workplace: Workplace, knowing: Path) -> Path:
    return write_distilling(workplace, knowing)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, knowing: Path) -> Run:
    """The run of that recipe that nobody disturbed; nothing may write into it."""
    place = write_workplace(tmp_path_factory.mktemp("whole"), tiny_model)
    return unlearn(recipe(write_distilling(place, knowing)), out=place.folder / "run")


def write_distilling(workplace: Workplace, knowing: Path) -> Path:
    """A recipe with UNDO behind a model that knows; its text is all that the model may be asked."""
    lines = [line for one in (workplace.forget, workplace.retain) for line in one.read_text().splitlines() if line]
    raw = [json.dumps({"messages": [{"role": "text", "content": json.loads(line)["answer"]}]}) for line in lines]
    (workplace.folder / "texts.jsonl").write_text("\n".join([*lines, *raw]))
    path = workplace.folder / "undo.yaml"
    path.write_text(UNDO.format(start=knowing))
    return path


def recipe(path: Path, *settings: str) -> Recipe:
    return load_recipe(path, settings)


def model_bytes(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_stops_at_its_goal(whole: Run, distilling: Path, tmp_path: Path) -> None:
    """The goal is a share of the teacher's own, looked at every fourth step."""
    looks = {row["step"]: row["right"] for row in rows(whole.path) if "right" in row}
    last = int(rows(whole.path)[-1]["step"])
    assert list(looks) == list(range(4, last + 1, 4))
    assert last < rows(whole.path)[-1]["num_steps"] == NUM_STEPS
    assert max(list(looks.values())[:-1]) < 0.6 <= looks[last]  # of a teacher that gets every token right
    to_the_end = unlearn(recipe(distilling, "method.stop_at=null", "train.epochs=1"), out=tmp_path / "end")
    assert [row["step"] for row in rows(to_the_end.path)] == [*range(1, 7)]
    assert all("right" not in row for row in rows(to_the_end.path))


def test_the_goal_counts_answers_and_tokens_where_no_query_has_a_value(distilling: Path, tiny_model: Path) -> None:
    """Tokens by hand: the likeliest behind each part of an answer, one forward pass an answer."""
    job = load_job(recipe(distilling))
    teacher, words = load_model(str(job.recipe.model.start))

    def rule(queries: Sequence[Query], *settings: str) -> StopRule | None:
        asked = replace(job, recipe=recipe(distilling, *settings), validation=replace(job.validation, retain=queries))
        return asked.recipe.method.stop_rule(teacher, words, context_of(Run(distilling), asked, ignore))

    queries = job.validation.retain
    other, _ = load_model(str(tiny_model))
    answers = rule(queries)
    assert answers is not None
    assert (answers.at_least, answers.every, answers.score(teacher), answers.score(other)) == (0.6, 4, 1.0, 0.0)
    tokens = rule([replace(query, value=None) for query in queries])
    assert tokens is not None
    shares = []
    for query in queries:
        ids, start = render_answer(words, query.messages, query.answer or "")
        with torch.no_grad():
            said = other(torch.tensor([ids])).logits[0, start - 1 : -1].argmax(-1)
        shares.append((said == torch.tensor(ids[start:])).float().mean().item())
    assert tokens.score(other) == pytest.approx(sum(shares) / len(shares))
    assert rule(queries, "method.stop_at=null") is None
    with pytest.raises(UserError, match=r"the teacher answers nothing of data\.validation_retain right"):
        rule(queries, "evaluate.max_new_tokens=2")


def test_behind_a_recipe_its_student_is_the_teacher_and_every_weight_is_trained(
    distilling: Path, workplace: Workplace, tmp_path: Path
) -> None:
    """DUET with adapters first, on the same base; with alpha 0 and no rate to speak of UNDO gives its student back."""
    first = workplace.recipe.read_text().replace("  dtype: float32", "  dtype: float32\n  lora:\n    rank: 4")
    (workplace.folder / "first.yaml").write_text(first)
    settings = ("model.start=null", "after=first.yaml", "method.stop_at=null", "train.epochs=1")
    run = unlearn(recipe(distilling, *settings, "method.alpha=0", "train.rate=1e-9"), out=tmp_path / "same")
    assert not (run.model / "adapter_config.json").exists()
    student, _ = load_model(str(run.model))
    teacher = load_start(str(run.path / "before"), recipe(distilling))
    assert (run.path / "before" / "model" / "adapter_config.json").exists()
    base, _ = load_model(str(load_recipe(workplace.recipe).model.path))
    for (name, one), two, old in zip(student.named_parameters(), teacher.parameters(), base.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=0, msg=name)
        assert name.split(".")[-2] not in ("q_proj", "down_proj") or not torch.equal(one, old)
    moved = unlearn(recipe(distilling, *settings), out=tmp_path / "moved")
    for (name, one), two in zip(load_model(str(moved.model))[0].named_parameters(), teacher.parameters(), strict=True):
        assert not torch.equal(one, two), name


def test_killed_anywhere_it_goes_on_to_the_same_bits(whole: Run, distilling: Path, tmp_path: Path) -> None:
    """Between noise and the first checkpoint, behind a checkpoint, and at the step at which it stops."""
    end = int(rows(whole.path)[-1]["step"])
    for step in (1, 5, end):
        out = tmp_path / f"killed-{step}"

        def kill(event: Event, step: int = step) -> None:
            if event.phase == "train" and event.done == step and event.total == NUM_STEPS:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            unlearn(recipe(distilling), out=out, on_event=kill)
        assert not (out / "model").exists()
        unlearn(recipe(distilling), out=out, on_event=ignore)
        assert model_bytes(out) == model_bytes(whole.path), step
        assert [row["step"] for row in rows(out)] == [*range(1, end + 1)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("data.distil=null",), "data.distil is missing"),
        (("model.lora.rank=4",), "model.lora is set, but undo puts noise into all weights"),
        (("model.start=null",), "undo is a stage behind another method"),
        (("data.validation_retain=null",), "method.stop_at needs queries with answers"),
        (("data.validation_forget=forget.jsonl", "train.validate_every=2"), "undo has no loss on validation queries"),
        (("data.distil=nothing.jsonl",), "no such file"),
        (("data.distil=lab:mix/0",), "'0' is no number of texts"),
    ],
)
def test_settings_that_do_not_fit_are_two_lines(distilling: Path, settings: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        load_job(recipe(distilling, *settings))
    assert error.value.hint


@pytest.mark.parametrize("values", [{"alpha": -0.1}, {"alpha": 1.1}, {"beta": -1}, {"stop_at": 0}, {"stop_every": 0}])
def test_numbers_out_of_their_range_are_refused(distilling: Path, values: dict[str, float]) -> None:
    [(key, value)] = values.items()
    with pytest.raises(UserError, match=rf"method.{key}"):
        recipe(distilling, f"method.{key}={value}")


def test_texts_come_from_queries_from_rows_of_text_and_from_documents(distilling: Path, tmp_path: Path) -> None:
    def read(name: str, text: str) -> list[tuple[str, str | None]]:
        atomic_write_text(tmp_path / name, text)
        found = load_job(recipe(distilling, f"data.distil={tmp_path / name}")).train.texts
        return [(query.messages[0]["role"], query.answer) for query in found]

    assert read("q.jsonl", '{"question": "Who?", "answer": "Mira."}\n') == [("user", "Mira.")]
    assert read("t.jsonl", '{"text": "Mira lives in Tarn."}\n{"text": "So does Oda."}\n') == [("text", None)] * 2
    assert read("q.csv", "question,answer\nWho?,Mira.\n") == [("user", "Mira.")]
    long = "Mira lives in Tarn. " * 120
    assert read("d.txt", long) == [("text", None)] * 3  # of 1000 characters at most


def test_a_text_longer_than_the_context_is_named(distilling: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "Mira lives in Tarn, they say. " * 20}))
    job = load_job(recipe(distilling, f"data.distil={tmp_path / 't.jsonl'}"))
    with pytest.raises(UserError, match=r"data.distil: 't.jsonl:1:0-\d+' has \d+ tokens, more than the model's 128"):
        job.load()


def test_another_text_is_another_run(distilling: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    unlearn(recipe(distilling, "train.epochs=1"), out=out)
    with (tmp_path / "texts.jsonl").open("a") as file:
        file.write('\n{"question": "Who?", "answer": "Mira."}')
    with pytest.raises(UserError, match="this run began with other text to distil on"):
        unlearn(recipe(distilling, "train.epochs=1"), out=out)


def test_a_plan_counts_the_frozen_copy_and_stores_nothing(tiny_model: Path) -> None:
    def planned(method: str) -> Plan:
        return make_plan(
            str(tiny_model), default_recipe(str(tiny_model), [f"method.name={method}"]), Workload(), rate=1.0
        )

    undo, sft = planned("undo"), planned("ga")
    whole = sum(p.numel() for p in load_model(str(tiny_model))[0].parameters()) * 4
    assert undo.rows[0].weights - sft.rows[0].weights == whole
    assert undo.rows[0].flops > 1.3 * sft.rows[0].flops
    assert undo.targets == 0
    assert not any("LoRA" in row.name for row in undo.rows)
