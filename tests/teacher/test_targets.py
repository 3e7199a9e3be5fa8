"""The target cache against the slowest way to ask a teacher: one prompt at a time, no padding, no disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from duet_unlearn.data.examples import Example, collate, example_of
from duet_unlearn.data.prompts import Prefix, render
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.losses import topk_huber
from duet_unlearn.models.blocks import logits_at
from duet_unlearn.teacher import targets
from duet_unlearn.teacher.targets import CachedTargets, Dense, build_targets, rows_spec, weights_id
from duet_unlearn.tensors import TopK, gather

K = 20
PREFIX = Prefix("You have forgotten Tarn.")
TEXTS = ("Where?", "Where does Mira Bol live, and since when?", "Mira", "Is it Tarn?")


def asked(*, prefix: Prefix | None = PREFIX, on_retain: Prefix | None = PREFIX) -> list[Example]:
    """Two forget and two retain queries; an id may stand in both roles."""
    queries = [Query(f"q{i % 3}", ({"role": "user", "content": text},)) for i, text in enumerate(TEXTS)]
    return [example_of(q, "forget", prefix=prefix) for q in queries[:2]] + [
        example_of(q, "retain", prefix=on_retain) for q in queries[2:]
    ]


def build(directory: Path, what: list[Example] | None = None, **changes: Any) -> CachedTargets:
    tokenizer = changes.pop("tokenizer", None) or tiny.tokenizer()
    model = changes.pop("model", None) or tiny.llama()
    rows = [replace(one, num_positions=changes.get("positions", 1)) for one in what or asked()]
    settings: dict[str, Any] = {"weights": "abc", "spec": rows_spec(changes.get("k", K))}
    settings |= {name: value for name, value in changes.items() if name not in ("k", "positions")}
    return build_targets(model, tokenizer, rows, directory=directory, **settings)


@torch.no_grad()
def last_logits(ids: list[int]) -> Tensor:
    return tiny.llama()(input_ids=torch.tensor([ids])).logits[0, -1]


def told(targets: CachedTargets, order: list[int] | None = None) -> TopK:
    """What the teacher said to the examples in an order."""
    picked = [targets.examples[i] for i in order or range(len(targets.examples))]
    signal = targets.of(picked)
    assert isinstance(signal, TopK)
    return signal


@pytest.mark.parametrize("prefix", [PREFIX, Prefix(PREFIX.text, "system")])
def test_the_signal_is_the_prefixed_models_last_logits(tmp_path: Path, prefix: Prefix) -> None:
    what, tokenizer = asked(prefix=prefix, on_retain=None), tiny.tokenizer()
    signal = told(build(tmp_path, what))
    for n, one in enumerate(what):
        expected = last_logits(render(tokenizer, one.query.messages, prefix=one.prefix)).topk(K)
        assert signal.ids_NK[n].tolist() == expected.indices.tolist()
        torch.testing.assert_close(signal.logits_NK[n], expected.values, rtol=1e-5, atol=1e-5)
    assert (signal.ids_NK.dtype, signal.logits_NK.dtype) == (torch.int64, torch.float32)


def test_defect_11_the_students_rows_have_no_prefix_and_read_the_last_prompt_token(tmp_path: Path) -> None:
    what, tokenizer = asked(), tiny.tokenizer()
    targets = build(tmp_path, what)
    assert [(e.key, e.role) for e in targets.examples] == [
        ("forget/q0", "forget"),
        ("forget/q1", "forget"),
        ("retain/q2", "retain"),
        ("retain/q0", "retain"),
    ]
    for example, one in zip(targets.examples, what, strict=True):
        assert list(example.ids) == render(tokenizer, one.query.messages)
        assert example.positions == (len(example.ids) - 1,)


def test_dense_targets_are_whole_rows_in_fp16(tmp_path: Path) -> None:
    what, tokenizer = asked(), tiny.tokenizer()
    targets = build(tmp_path, what, k=None)
    signal = targets.of(targets.examples)
    assert isinstance(signal, Dense)
    assert signal.logits_NV.dtype == torch.float16
    expected = torch.stack([last_logits(render(tokenizer, o.query.messages, prefix=o.prefix)) for o in what])
    torch.testing.assert_close(signal.logits_NV.float(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("k", [K, None])
def test_a_cache_is_read_back_to_the_bit_without_asking_again(tmp_path: Path, k: int | None) -> None:
    class Silent(nn.Module):
        """A teacher that must not be asked."""

    first = build(tmp_path, k=k, positions=3)
    second = build(tmp_path, k=k, positions=3, model=Silent())
    assert second.examples == first.examples
    batch = collate(first.examples, tiny.EOS)
    for mine, theirs in zip(first.of_batch(batch)["forget"], second.of_batch(batch)["forget"], strict=True):
        assert torch.equal(mine, theirs)


def test_later_positions_follow_the_teachers_own_greedy_answer(tmp_path: Path) -> None:
    what, tokenizer = asked(), tiny.tokenizer()
    targets = build(tmp_path, what, positions=4)
    signal, row = told(targets), 0
    for example, one in zip(targets.examples, what, strict=True):
        student = render(tokenizer, one.query.messages)
        ids = render(tokenizer, one.query.messages, prefix=one.prefix)
        said: list[int] = []
        for _ in range(4):
            logits_V = last_logits(ids + said)
            torch.testing.assert_close(signal.logits_NK[row], logits_V.topk(K).values, rtol=1e-4, atol=1e-4)
            said, row = [*said, int(logits_V.argmax())], row + 1
        assert list(example.ids) == student + said[:3]
        assert example.positions == tuple(range(len(student) - 1, len(student) + 3))
    assert row == len(signal.ids_NK)


def ending_with(token: int) -> PreTrainedTokenizerFast:
    """A tokeniser whose EOS is another token, and a template that does not write it."""
    tokenizer = tiny.tokenizer(tiny.TEMPLATE.replace("eos_token", "'</s>'"))
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(token)
    return tokenizer


def test_an_answer_that_ends_keeps_the_position_that_ends_it_and_no_more(tmp_path: Path) -> None:
    what = asked()
    long = build(tmp_path / "long", what, positions=4)
    prompts = [len(render(tiny.tokenizer(), one.query.messages)) for one in what]
    said = [list(e.ids[n:]) for e, n in zip(long.examples, prompts, strict=True)]
    end = said[0][1]
    short = build(tmp_path / "short", what, positions=4, tokenizer=ending_with(end))
    for example, start, tokens in zip(short.examples, prompts, said, strict=True):
        expected = tokens[: tokens.index(end)] if end in tokens else tokens
        assert list(example.ids[start:]) == expected
        assert len(example.positions) == len(expected) + 1
    assert len(short.examples[0].positions) == 2
    assert len(told(short).ids_NK) == sum(len(e.positions) for e in short.examples)


def test_an_answer_ends_at_any_of_the_models_end_tokens(tmp_path: Path) -> None:
    """Gemma's turns end with a token that is not the tokeniser's EOS."""
    model = tiny.llama()
    first = build(tmp_path / "long", asked(), positions=2).examples[0].ids[-1]
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [tiny.EOS, first]
    targets = build(tmp_path / "short", asked(), positions=2, model=model)
    assert len(targets.examples[0].positions) == 1


def test_any_order_of_examples_gets_its_own_rows(tmp_path: Path) -> None:
    targets = build(tmp_path, positions=2)
    whole, order = told(targets), [3, 0, 2, 0]
    rows = [row for i in order for row in (2 * i, 2 * i + 1)]
    mixed = told(targets, order)
    assert torch.equal(mixed.ids_NK, whole.ids_NK[rows])
    assert torch.equal(mixed.logits_NK, whole.logits_NK[rows])


def test_without_a_prefix_the_student_is_its_own_teacher(tmp_path: Path) -> None:
    targets = build(tmp_path, asked(prefix=None, on_retain=None), positions=3)
    batch = collate(targets.examples, tiny.EOS)
    with torch.no_grad():
        logits_NV = logits_at(tiny.llama(), batch.ids_BT, batch.mask_BT, batch.rows_N, batch.cols_N)
    kept = told(targets)
    assert topk_huber(gather(logits_NV, kept.ids_NK), kept.logits_NK).max() < 1e-8


def test_neither_shards_nor_chunks_change_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build(tmp_path / "whole", positions=2)
    monkeypatch.setattr(targets, "SHARD", 3)
    monkeypatch.setattr(targets, "TOKENS_AT_ONCE", 1)
    pieces = build(tmp_path / "pieces", positions=2)
    assert len(list((tmp_path / "pieces").glob("*.safetensors"))) == 2
    assert pieces.examples == whole.examples
    assert torch.equal(told(pieces).ids_NK, told(whole).ids_NK)
    torch.testing.assert_close(told(pieces).logits_NK, told(whole).logits_NK, rtol=1e-5, atol=1e-5)


OTHER = [replace(one, query=replace(one.query, messages=({"role": "user", "content": "Who?"},))) for one in asked()[:1]]


@pytest.mark.parametrize(
    ("part", "what", "changes"),
    [
        ("weights", None, {"weights": "other"}),
        ("template", None, {"tokenizer": tiny.tokenizer(tiny.TEMPLATE.replace("<|' + m", "<| ' + m"))}),
        ("queries", OTHER + asked()[1:], {}),
        ("queries", asked()[::-1], {}),
        ("prefix", asked(prefix=Prefix("You have forgotten Gosh.")), {}),
        ("prefix", asked(prefix=Prefix(PREFIX.text, "system")), {}),
        ("prefix", asked(on_retain=None), {}),
        ("K", None, {"k": K + 1}),
        ("K", None, {"k": None}),
        ("positions", None, {"positions": 2}),
    ],
)
def test_targets_of_something_else_are_refused_and_the_part_is_named(
    tmp_path: Path, part: str, what: list[Example] | None, changes: dict[str, Any]
) -> None:
    build(tmp_path)
    with pytest.raises(UserError, match=f"these targets were computed with other {part} ") as caught:
        build(tmp_path, what, **changes)
    assert "delete the folder" in caught.value.hint


def test_an_interrupted_build_is_not_taken_for_a_finished_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "SHARD", 2)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "killed", on_progress=stop)
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["00000.safetensors"]
    (tmp_path / "killed" / "00000.safetensors").write_bytes(b"half")
    progress: list[tuple[int, int]] = []
    again = build(tmp_path / "killed", on_progress=lambda done, total: progress.append((done, total)))
    assert progress == [(2, 4), (4, 4)]
    assert torch.equal(told(again).logits_NK, told(build(tmp_path / "whole")).logits_NK)


def test_k_over_the_vocabulary_is_two_lines_and_leaves_no_cache(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        build(tmp_path, k=tiny.VOCABULARY + 1)
    assert caught.value.message == "method.k is 301, but the model's vocabulary has 300 tokens"
    assert caught.value.hint == "set method.k to 300 at most, or to null for all"
    assert list(tmp_path.iterdir()) == []
    assert told(build(tmp_path, k=tiny.VOCABULARY)).ids_NK.shape == (4, 300)


def test_a_query_that_stands_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the query forget/q1 stands twice"):
        build(tmp_path, [*asked(), asked()[1]])


@pytest.mark.parametrize("training", [True, False])
def test_the_teacher_is_asked_without_dropout_and_left_as_it_was(tmp_path: Path, training: bool) -> None:
    model = tiny.llama()
    model.config.attention_dropout = 0.5
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    model.train(training)
    noisy = told(build(tmp_path / "noisy", model=model))
    assert model.training is training
    assert torch.equal(noisy.logits_NK, told(build(tmp_path / "plain")).logits_NK)
    assert not noisy.logits_NK.requires_grad


def test_weights_id_knows_bytes_and_names(tmp_path: Path) -> None:
    def of(name: str, content: bytes) -> str:
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / name).write_bytes(content)
        (folder / "config.json").write_text("{}")
        return weights_id(folder)

    first = of("model.safetensors", b"abc")
    assert first == of("model.safetensors", b"abc")
    assert len({first, of("model.safetensors", b"abd"), of("other.safetensors", b"abc")}) == 3
