"""Every family of models through everything: prompts, targets, training, adapters, folders, answers, scores.

What is expected comes from the slowest way to get it: one prompt at a time, without padding, cache or head selection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import BY_NAME, FAMILIES, Family, tokenizer, write
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from duet_unlearn.attacks.optimised_prompts import embedded, vector_ids, vectors
from duet_unlearn.config.sections import LoraConfig, TrainConfig
from duet_unlearn.data.examples import Example, collate, epochs_source, example_of
from duet_unlearn.data.prompts import Prefix, answer_ids, render
from duet_unlearn.data.query import Message, Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.question_sets import EvalSet, run_suite
from duet_unlearn.evals.subject import ModelSubject
from duet_unlearn.methods.duet import Duet
from duet_unlearn.models.blocks import logits_at
from duet_unlearn.models.load import load_model, merged, save_model
from duet_unlearn.models.lora import add_lora, save_gradient_memory, teacher_mode
from duet_unlearn.teacher import decoding
from duet_unlearn.teacher.decoding import Decoding, beam_search, end_ids, greedy
from duet_unlearn.teacher.targets import CachedTargets, build_targets, rows_spec
from duet_unlearn.training.loop import train

QUESTIONS = ("Tarn?", "Where does Mira Bol live, and since when?", "Who is Mira?", "Is it in Tarn or in Gosh, or not?")
"""Of four lengths, so that every batch is padded."""
PREFIX = Prefix("You have forgotten Tarn.")
K = 40


@dataclass(frozen=True)
class Loaded:
    """A family's model as a user has it: a folder, read by the loader."""

    family: Family
    folder: Path
    model: PreTrainedModel
    words: PreTrainedTokenizerBase

    def again(self, **settings: Any) -> PreTrainedModel:
        """The same model, for a test that changes it."""
        return load_model(str(self.folder), chat_template=self.family.chat_template, **settings)[0]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    family: Family = request.param
    folder = write(family, tmp_path_factory.mktemp("models") / family.name)
    return Loaded(family, folder, *load_model(str(folder), chat_template=family.chat_template))


def asking(question: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": question},)


def asked(prefix: Prefix = PREFIX) -> list[Example]:
    """Forget and retain by turns."""
    queries = [Query(id=str(n), messages=asking(text)) for n, text in enumerate(QUESTIONS)]
    return [
        example_of(q, "forget" if n % 2 == 0 else "retain", prefix=prefix, num_positions=2)
        for n, q in enumerate(queries)
    ]


def targets_of(one: Loaded, folder: Path, *, model: nn.Module | None = None, **changes: Any) -> CachedTargets:
    settings: dict[str, Any] = {"spec": rows_spec(K), "weights": one.family.name} | changes
    return build_targets(model or one.model, one.words, asked(), directory=folder, **settings)


def stored(targets: CachedTargets) -> Mapping[str, Tensor]:
    """What is kept of all positions: the roles share one kind of target."""
    [tensors] = targets.stored.values()
    return tensors


@torch.no_grad()
def naive(model: nn.Module, ids: Sequence[int]) -> Tensor:
    """(T, V) logits of a row alone."""
    return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


def naive_answer(model: nn.Module, ids: list[int], eos_ids: frozenset[int], steps: int) -> list[int]:
    new: list[int] = []
    while len(new) < steps and (token := int(naive(model, ids + new)[-1].argmax())) not in eos_ids:
        new.append(token)
    return new


def fit(model: nn.Module, targets: CachedTargets, *, num_steps: int, rate: float = 3e-3) -> list[float]:
    """Losses of the real loop, with micro-batches."""
    source, _ = epochs_source(targets.examples, batch_size=len(QUESTIONS), epochs=num_steps, seed=0)
    logs = train(
        model,
        source=source,
        num_steps=num_steps,
        loss=Duet(k=K).loss,
        targets=targets.of_batch,
        config=TrainConfig(rate=rate, micro_batch_size=3),
        pad_id=0,
    )
    return [log.loss for log in logs]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, p in weights(model).items() if not torch.equal(p, before[name])}


def test_defects_3_4_and_11_teacher_and_student_meet_at_the_answers_first_position(one: Loaded, tmp_path: Path) -> None:
    """The targets are the teacher's logits behind its whole prompt; the student is read behind its own."""
    targets = targets_of(one, tmp_path)
    for row, (question, example) in enumerate(zip(QUESTIONS, targets.examples, strict=True)):
        student, teacher = render(one.words, asking(question)), render(one.words, asking(question), prefix=PREFIX)
        assert list(example.ids[: len(student)]) == student
        assert example.positions[0] == len(student) - 1
        assert len(teacher) > len(student)
        start = targets.starts[example.key]
        for place in range(len(example.positions)):
            told = teacher + list(example.ids[len(student) : len(student) + place])
            expected = naive(one.model, told)[-1].topk(K)
            assert torch.equal(stored(targets)["topk_ids"][start + place].long(), expected.indices), (row, place)
            torch.testing.assert_close(stored(targets)["logits"][start + place], expected.values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pad_token", ["pad", "end"])
def test_defects_4_and_8_the_students_padded_rows_are_the_rows_alone(
    one: Loaded, tmp_path: Path, pad_token: str
) -> None:
    examples = targets_of(one, tmp_path).examples
    pad_id = one.words.pad_token_id if pad_token == "pad" else one.words.eos_token_id
    assert pad_id is not None
    batch = collate(examples, int(pad_id))
    with torch.no_grad():
        got = logits_at(one.model, batch.ids_BT, batch.mask_BT, batch.rows_N, batch.cols_N)
    rows = [naive(one.model, example.ids)[column] for example in examples for column in example.positions]
    torch.testing.assert_close(got, torch.stack(rows), rtol=1e-4, atol=1e-5)


def test_the_cache_is_read_again_without_the_model(one: Loaded, tmp_path: Path) -> None:
    first = targets_of(one, tmp_path)
    second = targets_of(one, tmp_path, model=nn.Module())
    assert (first.examples, first.starts) == (second.examples, second.starts)
    assert torch.equal(stored(first)["topk_ids"], stored(second)["topk_ids"])
    assert torch.equal(stored(first)["logits"], stored(second)["logits"])
    with pytest.raises(UserError, match="computed with other weights"):
        targets_of(one, tmp_path, weights="another")


def test_duet_lowers_its_loss_and_the_student_survives_its_folder(one: Loaded, tmp_path: Path) -> None:
    student, targets = one.again(), targets_of(one, tmp_path / "targets")
    losses = fit(student, targets, num_steps=12)
    assert losses[-1] < 0.5 * losses[0]
    save_model(student, one.words, tmp_path / "student")
    again, words = load_model(str(tmp_path / "student"))
    ids = render(one.words, asking(QUESTIONS[1]))
    assert torch.equal(naive(again, ids), naive(student, ids))
    assert not torch.equal(naive(again, ids), naive(one.model, ids))
    assert render(words, asking(QUESTIONS[1])) == ids
    assert again.get_output_embeddings() is not None
    head, embeddings = again.get_output_embeddings().weight, again.get_input_embeddings().weight
    assert (head is embeddings) == one.family.tied
    assert torch.equal(head, embeddings) == one.family.tied


@pytest.mark.parametrize("saving", [False, True], ids=["plain", "checkpointing"])
def test_defect_13_every_default_adapter_is_trained(one: Loaded, tmp_path: Path, saving: bool) -> None:
    """B moves at the first step; A, whose gradient is B's multiple, at the second."""
    base, targets = one.again(), targets_of(one, tmp_path)
    student = add_lora(base, LoraConfig(rank=2, alpha=8), seed=0)
    if saving:
        save_gradient_memory(base)
        assert base.is_gradient_checkpointing
    before = weights(student)
    adapters = {name for name in before if "lora_" in name}
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in adapters} == set(one.family.layers)
    assert len(adapters) == 2 * 2 * one.family.per_block  # A and B, two blocks
    fit(student, targets, num_steps=1)
    assert moved(student, before) == {name for name in adapters if "lora_B" in name}
    halfway = weights(student)
    fit(student, targets, num_steps=1)
    assert moved(student, halfway) == adapters


def test_gradient_checkpointing_trains_the_same_student(one: Loaded, tmp_path: Path) -> None:
    plain, thrifty, targets = one.again(), one.again(), targets_of(one, tmp_path)
    save_gradient_memory(thrifty)
    assert fit(thrifty, targets, num_steps=3) == pytest.approx(fit(plain, targets, num_steps=3), rel=1e-4)


def test_an_adapter_off_is_the_teacher_saved_it_is_the_student_and_merged_a_plain_model(
    one: Loaded, tmp_path: Path
) -> None:
    adapter_goes_round(one, tmp_path, "float32")


@pytest.mark.parametrize("name", ["gemma-2", "gpt-2", "qwen-3-moe"])
def test_adapters_on_bfloat16_do_the_same_and_keep_the_type(name: str, tmp_path: Path) -> None:
    family, folder = BY_NAME[name], write(BY_NAME[name], tmp_path / "model")
    model, words = load_model(str(folder), dtype="bfloat16", chat_template=family.chat_template)
    adapter_goes_round(Loaded(family, folder, model, words), tmp_path, "bfloat16")


def adapter_goes_round(one: Loaded, tmp_path: Path, dtype: str) -> None:
    base, targets = one.again(dtype=dtype), targets_of(one, tmp_path / "targets")
    ids = render(one.words, asking(QUESTIONS[1]))
    teacher = naive(base, ids)
    student = add_lora(base, LoraConfig(rank=4, alpha=8), seed=0)
    losses = fit(student, targets, num_steps=12, rate=1e-2)
    assert losses[-1] < 0.7 * losses[0]
    said = naive(student, ids)
    with teacher_mode(student):
        assert torch.equal(naive(student, ids), teacher)
    save_model(student, one.words, tmp_path / "adapter")
    assert not list((tmp_path / "adapter").glob("model*.safetensors"))
    again, _ = load_model(str(tmp_path / "adapter"), dtype=dtype)  # type: ignore[arg-type]
    assert torch.equal(naive(again, ids), said)
    save_model(merged(student), one.words, tmp_path / "merged")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert type(whole) is type(one.model)
    assert {p.dtype for p in whole.parameters()} == {getattr(torch, dtype)}
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == one.words.chat_template
    change = (said - teacher).float().abs().mean()
    assert (naive(whole, ids) - said).float().abs().mean() < (0.001 if dtype == "float32" else 0.3) * change


@pytest.mark.parametrize("prefix", [None, PREFIX], ids=["bare", "prefix"])
def test_defects_10_and_21_batched_answers_are_those_of_one_at_a_time(one: Loaded, prefix: Prefix | None) -> None:
    """Left padding beside positions of every kind, and caches that slide."""
    eos_ids = end_ids(one.model, one.words)
    prompts = [render(one.words, asking(q), prefix=prefix) for q in QUESTIONS]
    got = greedy(one.model, prompts, eos_ids=eos_ids, padding_id=0, max_new_tokens=12, batch_size=4)
    assert got == [naive_answer(one.model, row, eos_ids, 12) for row in prompts]
    assert any(len(row) == 12 for row in got)
    subject = ModelSubject("base", one.model, one.words, prefix)
    answers = [subject.generate([asking(q) for q in QUESTIONS], max_new_tokens=12, batch_size=size) for size in (1, 4)]
    assert answers[0] == answers[1]


def naive_beams(model: nn.Module, ids: list[int], eos_ids: frozenset[int], steps: int, beams: int) -> list[list[int]]:
    live, whole = [(0.0, list[int]())], list[tuple[float, list[int]]]()
    for _ in range(steps):
        logps_BV = torch.stack([torch.log_softmax(naive(model, ids + new)[-1], dim=-1) + logp for logp, new in live])
        best = logps_BV.flatten().argsort(descending=True)[: beams * (1 + len(eos_ids))].tolist()
        grown = [
            (float(logps_BV.flatten()[at]), live[at // logps_BV.shape[1]][1], at % logps_BV.shape[1]) for at in best
        ]
        whole += [(logp, new) for logp, new, token in grown[:beams] if token in eos_ids]
        live = [(logp, [*new, token]) for logp, new, token in grown if token not in eos_ids][:beams]
    return [new for _, new in sorted([*whole, *live], key=lambda one: -one[0])[:beams]]


@torch.no_grad()
def test_beams_and_draws_in_a_batch_are_those_of_one_at_a_time(one: Loaded) -> None:
    """Beams reorder whatever the family keeps of a row."""
    eos_ids = end_ids(one.model, one.words)
    prompts = [render(one.words, asking(q)) for q in QUESTIONS]
    got = beam_search(one.model, prompts * 3, beams=3, eos_ids=eos_ids, padding_id=0, max_new_tokens=6, batch_size=12)
    assert [got[place::4] for place in range(4)] == [naive_beams(one.model, row, eos_ids, 6, 3) for row in prompts]
    subject = ModelSubject("base", one.model, one.words).decoded(Decoding(temperature=1.5))
    drawn = [subject.generate([asking(q) for q in QUESTIONS], max_new_tokens=6, batch_size=size) for size in (1, 4)]
    assert drawn[0] == drawn[1]


@torch.no_grad()
def test_vectors_of_tokens_are_taken_for_the_tokens(one: Loaded) -> None:
    """Where an embedding scales what it gives, so must a vector that stands for a token be scaled."""
    row = render(one.words, asking(QUESTIONS[1]))
    ids = torch.tensor([[*row[:4], *vector_ids(one.model, 3), *row[7:]]])
    with vectors(one.model, embedded(one.model, row[4:7])):
        got = one.model(input_ids=ids, use_cache=False).logits[0]
    torch.testing.assert_close(got, naive(one.model, row))


def test_answers_behind_a_shared_beginning_are_those_of_one_at_a_time(
    one: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the family shares (``teacher.shared``) and where it does not."""
    monkeypatch.setattr(decoding, "PREFIX_SAVES", 10)
    eos_ids = end_ids(one.model, one.words)
    prompts = [render(one.words, asking(f"You have forgotten Tarn. {q}")) for q in QUESTIONS]
    got = greedy(one.model, prompts, eos_ids=eos_ids, padding_id=0, max_new_tokens=6, batch_size=3)
    assert got == [naive_answer(one.model, row, eos_ids, 6) for row in prompts]


def test_defect_5_an_answers_probability_has_all_its_tokens(one: Loaded) -> None:
    answers = ["Tarn", "Mira Bol lives in Tarn.", "no", "Gosh"]
    got = ModelSubject("base", one.model, one.words).logps([asking(q) for q in QUESTIONS], answers, batch_size=4)
    for question, answer, value in zip(QUESTIONS, answers, got, strict=True):
        head, tail = render(one.words, asking(question)), answer_ids(one.words, asking(question), answer)
        assert one.words.decode(tail).strip() == answer
        logps = naive(one.model, head + tail).float().log_softmax(-1)
        expected = sum(float(logps[len(head) - 1 + n, token]) for n, token in enumerate(tail))
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_a_suite_is_asked_and_scored(one: Loaded) -> None:
    queries = tuple(
        Query(id=str(n), messages=asking(q), answer="In Tarn.", value="Tarn") for n, q in enumerate(QUESTIONS)
    )
    sets = [EvalSet("forget", "Forget", "forget", "low", "-", queries)]
    result = run_suite(ModelSubject("base", one.model, one.words), sets, max_new_tokens=4, batch_size=4)
    assert {score.n for score in result.scores["forget"].values()} == {len(QUESTIONS)}
    assert [sample["id"] for sample in result.samples] == ["0", "1", "2", "3"]


def test_defect_20_no_bos_twice(one: Loaded) -> None:
    bos = one.words.bos_token_id
    written = one.family.template is not None and "bos_token" in one.family.template
    for prefix in (None, PREFIX):
        ids = render(one.words, asking(QUESTIONS[0]), prefix=prefix)
        opens = written or (one.family.template is None and one.family.adds_bos)
        assert ids.count(bos) == int(opens)
        assert (ids[0] == bos) == opens


def test_a_tokeniser_without_a_pad_token_gets_its_end(one: Loaded) -> None:
    assert one.words.pad_token == (one.family.pad or one.family.eos)


def text(name: str, messages: Sequence[Message], prefix: Prefix | None = None) -> str:
    words = tokenizer(BY_NAME[name])
    return words.decode(render(words, messages, prefix=prefix))


SYSTEM = Prefix("You have forgotten Tarn.", "system")
WITH_SYSTEM: tuple[Message, ...] = ({"role": "system", "content": "Be brief."}, *asking("Who?"))


def test_defect_22_llamas_date_is_pinned() -> None:
    assert "Today Date: 26 Jul 2024" in text("llama-3", asking("Who?"))
    assert "Today Date: 26 Jul 2024\n\nYou have forgotten Tarn.<|eot_id|>" in text("llama-3", asking("Who?"), SYSTEM)


def test_defect_23_qwens_default_system_turn_stays_behind_the_prefix() -> None:
    bare, told = text("qwen-2.5", asking("Who?")), text("qwen-2.5", asking("Who?"), SYSTEM)
    assert bare.startswith("<|im_start|>system\nYou are Qwen, a helpful assistant.<|im_end|>\n")
    assert told == bare.replace("You are Qwen", "You have forgotten Tarn.\nYou are Qwen", 1)


@pytest.mark.parametrize("name", ["qwen-3", "qwen-3-moe"])
def test_defect_24_the_answer_begins_behind_the_think_block(name: str) -> None:
    for prefix in (None, PREFIX, SYSTEM):
        assert text(name, asking("Who?"), prefix).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_gemma_2_refuses_a_system_turn_in_two_lines_and_takes_the_user_turn() -> None:
    for messages, prefix in ((asking("Who?"), SYSTEM), (WITH_SYSTEM, None)):
        with pytest.raises(UserError, match="System role not supported") as caught:
            text("gemma-2", messages, prefix)
        assert "prefix.turn to user" in caught.value.hint
    assert text("gemma-2", asking("Who?"), PREFIX).startswith("<bos><start_of_turn>user\nYou have forgotten Tarn.\nWho")
    turns = [*asking("Who?"), {"role": "assistant", "content": "Mira."}, *asking("Where?")]
    assert "<start_of_turn>model\nMira.<end_of_turn>" in text("gemma-2", turns)


def test_gemma_3_puts_a_system_turn_into_the_first_question() -> None:
    assert "user\nYou have forgotten Tarn.\n\nWho?<end_of_turn>" in text("gemma-3", asking("Who?"), SYSTEM)
    assert "user\nYou have forgotten Tarn.\nBe brief.\n\nWho?<end_of_turn>" in text("gemma-3", WITH_SYSTEM, SYSTEM)


def test_gemma_2_caps_its_logits_in_targets_and_training_alike(tmp_path: Path) -> None:
    """A head that is called by itself, without what the model does behind it, would say more than the cap."""
    family = BY_NAME["gemma-2"]
    model, words = load_model(str(write(family, tmp_path / "model")))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(8)
    one, cap = Loaded(family, tmp_path / "model", model, words), family.settings["final_logit_softcapping"]
    targets = targets_of(one, tmp_path / "targets")
    assert 0.99 * cap < stored(targets)["logits"].abs().max() <= cap
    batch = collate(targets.examples, 0)
    got = logits_at(model, batch.ids_BT, batch.mask_BT, batch.rows_N, batch.cols_N)
    assert 0.99 * cap < got.abs().max() <= cap


@pytest.mark.parametrize("name", ["pythia", "gpt-2"])
def test_a_base_model_without_a_template_says_what_to_set(name: str, tmp_path: Path) -> None:
    _, words = load_model(str(write(BY_NAME[name], tmp_path / name)))
    with pytest.raises(UserError, match="has no chat template") as caught:
        render(words, asking("Who?"))
    assert "`plain`" in caught.value.hint
