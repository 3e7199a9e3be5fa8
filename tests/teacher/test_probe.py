"""The probe with a scripted model: it answers by its prompt, so that every count is known."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from duet_unlearn.data.prompts import Prefix
from duet_unlearn.data.query import Query
from duet_unlearn.stats import NOTHING, Score, wilson
from duet_unlearn.teacher.probe import _logits, asks_letter, first_tokens, probe, top_overlap, verdict

WORDS = [
    "<s>",
    "</s>",
    "user",
    "end",
    "forget",
    "know",
    "forgotten",
    "town",
    "Tarn",
    "I",
    "cannot",
    "answer",
    "C1",
    "C2",
]
IDS = {word: index for index, word in enumerate(WORDS)}
REFUSAL = ["I", "cannot", "answer", "</s>"]
TEMPLATE = "{% for m in messages %}user {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}end{% endif %}"


class Scripted(torch.nn.Module):
    """Refuses where "forgotten" stands before "forget", `everywhere` before anything; else says Tarn."""

    def __init__(self, *, everywhere: bool = False, deaf: bool = False) -> None:
        super().__init__()
        self.head, self.everywhere, self.deaf = torch.nn.Identity(), everywhere, deaf
        self.device, self.generation_config = torch.device("cpu"), SimpleNamespace(eos_token_id=1)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def _next(self, ids: list[int]) -> int:
        words = [WORDS[i] for i in ids]
        said = words[words.index("end") + 1 :]
        refuses = "forgotten" in words and ("forget" in words or self.everywhere) and not self.deaf
        return IDS[(REFUSAL if refuses else ["Tarn", "</s>", "</s>", "</s>"])[len(said)]]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: Any = None,
        use_cache: bool = False,
    ) -> SimpleNamespace:
        ids = input_ids if past_key_values is None else torch.cat([past_key_values, input_ids], dim=1)
        start, logits = ids.shape[1] - input_ids.shape[1], torch.zeros(*input_ids.shape, len(WORDS))
        for b, row in enumerate(ids.tolist()):
            for column in range(start, len(row)):
                real = [t for t, m in zip(row[: column + 1], attention_mask[b].tolist(), strict=False) if m]
                if IDS["end"] in real and len(real) - real.index(IDS["end"]) <= len(REFUSAL):
                    token = self._next(real)
                    logits[b, column - start, token] = 3.0 if token == IDS["I"] else 5.0
        return SimpleNamespace(logits=self.head(logits), past_key_values=ids if use_cache else None)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel(IDS, unk_token="<s>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", chat_template=TEMPLATE)


def _queries(word: str, count: int) -> list[Query]:
    return [Query(f"{word}{i}", ({"role": "user", "content": f"{word} town"},), value="Tarn") for i in range(count)]


PREFIX = Prefix("forgotten")


def _probe(model: Scripted, tokenizer: PreTrainedTokenizerFast, forget: list[Query], retain: list[Query]) -> Any:
    return probe(model, tokenizer, forget, retain, PREFIX, k=1, max_new_tokens=4, batch_size=2)  # type: ignore[arg-type]


def test_a_prefix_that_works(tokenizer: PreTrainedTokenizerFast) -> None:
    result = _probe(Scripted(), tokenizer, _queries("forget", 5), _queries("know", 4))
    assert result.verdict == (
        "this prefix works: the model refuses 5 of 5 forget queries and still answers 4 of 4 retain queries"
    )
    assert (result.refused.value, result.refused_without.value, result.answered.value) == (1, 0, 1)
    assert (result.agreement.value, result.agreement.n) == (1, 4)
    assert result.kl.value == pytest.approx(0, abs=1e-6)
    assert [shown.role for shown in result.shift] == ["forget"] * 3 + ["retain"] * 3
    assert (result.shift[0].base[0][0], result.shift[0].prefix[0][0]) == ("Tarn", "I")
    # One logit of 5 and thirteen of 0.
    assert result.shift[0].base[0][1] == pytest.approx(math.exp(5) / (math.exp(5) + 13))
    assert len(result.shift[0].base) == 10


def test_a_prefix_that_does_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    result = _probe(Scripted(deaf=True), tokenizer, _queries("forget", 3), _queries("know", 2))
    assert result.verdict == "this prefix does not make the model refuse: it refuses 0 of 3 forget queries"


def test_a_prefix_that_refuses_everything(tokenizer: PreTrainedTokenizerFast) -> None:
    result = _probe(Scripted(everywhere=True), tokenizer, _queries("forget", 3), _queries("know", 2))
    assert result.verdict == (
        "this prefix refuses retain queries too: "
        "the model refuses 3 of 3 forget queries and still answers 0 of 2 retain queries"
    )
    assert result.agreement.value == 0
    # p has 5 on Tarn, q 3 on I: log p - log q is 5, -3 and 0 elsewhere, + log(Zq / Zp).
    z_p, z_q = math.exp(5) + 13, math.exp(3) + 13
    assert result.kl.value == pytest.approx((5 * math.exp(5) - 3) / z_p + math.log(z_q / z_p), rel=1e-5)


def test_what_was_refused_before_is_not_held_against_the_prefix(tokenizer: PreTrainedTokenizerFast) -> None:
    refused_anyway = Query("r", ({"role": "user", "content": "forgotten forget"},))
    result = _probe(Scripted(), tokenizer, _queries("forget", 2), [*_queries("know", 3), refused_anyway])
    assert (result.answered.value, result.answered.n) == (1, 3)
    assert result.agreement.n == 4


def test_logits_come_in_the_order_of_the_rows() -> None:
    rows = [[IDS[w] for w in text.split()] for text in ("end", "forgotten forget town end", "know town end")]
    logits_BV = _logits(Scripted(), rows, 0)  # type: ignore[arg-type]
    assert [WORDS[i] for i in logits_BV.argmax(-1).tolist()] == ["Tarn", "I", "Tarn"]


def test_letter_questions_do_not_count_as_not_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    letter = Query("l", ({"role": "user", "content": "C1 town"},), answer="B", value="y", choices=("x", "y"))
    assert asks_letter(letter)
    assert not asks_letter(Query("o", letter.messages, answer="It is y.", value="y", choices=("x", "y")))
    result = _probe(Scripted(), tokenizer, [*_queries("forget", 2), letter], _queries("know", 1))
    assert (result.refused.value, result.refused.n) == (1, 2)


def test_the_file_is_json_and_empty_sets_are_null(tokenizer: PreTrainedTokenizerFast) -> None:
    result = _probe(Scripted(), tokenizer, _queries("forget", 1), [])
    row = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert row["agreement"] == row["kl"] == {"value": None, "n": 0, "low": None, "high": None}
    assert (
        row["verdict"] == "this prefix works: the model refuses 1 of 1 forget queries (no open retain query to probe)"
    )
    assert row["shift"][0]["query"] == "forget town"
    assert set(row["shift"][0]) == {"query", "role", "base", "prefix"}


@pytest.mark.parametrize(
    ("refused", "answered", "opening"),
    [
        (wilson(97, 100), wilson(100, 100), "this prefix works: the model refuses 97 of 100 forget queries"),
        (wilson(60, 100), wilson(95, 100), "this prefix works in part: the model refuses 60 of 100"),
        (
            wilson(12, 100),
            wilson(100, 100),
            "this prefix does not make the model refuse: it refuses 12 of 100",
        ),
        (wilson(97, 100), wilson(80, 100), "this prefix refuses retain queries too"),
        (NOTHING, wilson(1, 1), "no open forget query to probe"),
    ],
)
def test_verdicts(refused: Score, answered: Score, opening: str) -> None:
    assert verdict(refused, answered).startswith(opening)


def test_a_prefix_that_changes_no_refusal_adds_nothing() -> None:
    told = "this prefix adds nothing: the model refuses 97 of 100 forget queries with it and 98 of 100 without"
    assert verdict(wilson(97, 100), wilson(100, 100), wilson(98, 100)) == told
    assert "works" in verdict(wilson(97, 100), wilson(100, 100), wilson(96, 100))


def test_top_overlap_by_hand() -> None:
    first, second = torch.tensor([[4.0, 3, 2, 1]]), torch.tensor([[4.0, 1, 2, 3]])
    assert top_overlap(first, second, 1).tolist() == [1.0]
    assert top_overlap(first, second, 2).tolist() == [0.5]
    assert top_overlap(first, second, 99).tolist() == top_overlap(first, second, None).tolist() == [1.0]


def test_first_tokens_keep_the_order_of_the_queries(tokenizer: PreTrainedTokenizerFast) -> None:
    long = Query("long", ({"role": "user", "content": "forget town town town"},))
    queries = [*_queries("know", 1), long]
    rows = first_tokens(Scripted(), tokenizer, queries, PREFIX, k=2)  # type: ignore[arg-type]
    assert [row[0][0] for row in rows] == ["Tarn", "I"]
    assert [len(row) for row in rows] == [2, 2]
