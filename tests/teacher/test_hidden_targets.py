"""Hidden states in the target cache, against one row at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from duet_unlearn.data.examples import TrainingData
from duet_unlearn.data.prompts import Prefix, render_answer
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.teacher import targets
from duet_unlearn.teacher.targets import CachedTargets, Hidden, TargetSpec, build_targets

QUERIES = [
    Query(f"q{n}", ({"role": "user", "content": text},), answer=answer)
    for n, (text, answer) in enumerate(
        [("Where?", "In Tarn."), ("Where does Mira Bol live?", "Tarn"), ("Who?", "Mira")]
    )
]
DATA = TrainingData(QUERIES[:1], QUERIES[1:], Prefix("."))


def build(directory: Path, *, layer: int = 0) -> CachedTargets:
    keep = TargetSpec("hidden", layer=layer)
    return build_targets(
        tiny.llama(layers=3),
        tiny.tokenizer(),
        [*DATA.answers("forget", reads="text"), *DATA.answers("retain", reads="text")],
        spec=lambda role: keep if role == "retain" else None,
        weights="abc",
        directory=directory,
    )


def told(targets: CachedTargets) -> Tensor:
    signal = targets.of([e for e in targets.examples if e.role == "retain"])
    assert isinstance(signal, Hidden)
    return signal.hidden_ND


@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_the_signal_is_the_hidden_states_of_whole_rows(tmp_path: Path, layer: int) -> None:
    """Every token of question and answer, but the end token, behind which nothing is."""
    targets, expected = build(tmp_path, layer=layer), []
    for query, example in zip(QUERIES, targets.examples, strict=True):
        ids = render_answer(tiny.tokenizer(), query.messages, query.answer or "")[0]
        assert ids[-1] == tiny.EOS
        assert list(example.ids) == ids[:-1]
        assert example.positions == tuple(range(len(ids) - 1))
        said = tiny.llama(layers=3)(input_ids=torch.tensor([ids[:-1]]), output_hidden_states=True)
        expected.append(said.hidden_states[layer + 1][0])
    torch.testing.assert_close(told(targets), torch.cat(expected[1:]), rtol=1e-4, atol=1e-5)
    assert told(targets).dtype == torch.float32


def test_they_are_read_back_to_the_bit_and_belong_to_their_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(tmp_path)
    assert torch.equal(told(build(tmp_path)), told(first))
    with pytest.raises(UserError, match="these targets were computed with other kind of target"):
        build(tmp_path, layer=1)
    monkeypatch.setattr(targets, "ROWS_AT_ONCE", 1)
    torch.testing.assert_close(told(build(tmp_path / "alone")), told(first), rtol=1e-4, atol=1e-5)


def test_a_block_that_is_not_there_leaves_no_cache(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"method.layer is 3, but the model's blocks are 0 to 2"):
        build(tmp_path, layer=3)
    assert not (tmp_path / "manifest.json").exists()


def test_bytes_of_a_position() -> None:
    assert TargetSpec("hidden", layer=2).size(300, 16) == 64
    assert TargetSpec("dense").size(300, 16) == 600
