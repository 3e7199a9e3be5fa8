"""The direction along which a model refuses: taken out exactly, wherever it is read or written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from whitebox import GOAL, Lab, gpt2, tiny_subject

from duet_unlearn.attacks import NotApplicable, attack, finding
from duet_unlearn.attacks.directions import RefusalDirection, without
from duet_unlearn.attacks.hidden import outputs_of
from duet_unlearn.attacks.plain import Plain

IDS = torch.tensor([[5, 6, 7, 8, 9, 30, 31]])


def unit(size: int) -> Tensor:
    return nn.functional.normalize(torch.randn(size, generator=torch.Generator().manual_seed(2)), dim=0)


@torch.no_grad()
def taken_out_of_weights_llama(model: nn.Module, direction: Tensor) -> None:
    """W - d d^T W of everything that writes to the stream."""
    inner = model.model
    inner.embed_tokens.weight -= torch.outer(inner.embed_tokens.weight @ direction, direction)
    for block in inner.layers:
        for layer in (block.self_attn.o_proj, block.mlp.down_proj):
            layer.weight -= torch.outer(direction, direction @ layer.weight)


@torch.no_grad()
def taken_out_of_weights_gpt2(model: nn.Module, direction: Tensor) -> None:
    """Places and biases too; weights lie transposed, and the head keeps what the embeddings lose."""
    inner = model.transformer
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    for table in (inner.wte, inner.wpe):
        table.weight -= torch.outer(table.weight @ direction, direction)
    for block in inner.h:
        for layer in (block.attn.c_proj, block.mlp.c_proj):
            layer.weight -= torch.outer(layer.weight @ direction, direction)
            layer.bias -= (layer.bias @ direction) * direction


@pytest.mark.parametrize(
    ("make", "take_out"),
    [(lambda: tiny_subject().model, taken_out_of_weights_llama), (gpt2, taken_out_of_weights_gpt2)],
    ids=["llama", "gpt-2"],
)
def test_hooks_do_what_orthogonal_weights_do(make: object, take_out: object) -> None:
    """arXiv 2406.11717, equation 5. The final norm of Llama reads what the last block hands on."""
    hooked, changed = make(), make()  # type: ignore[operator]
    direction = unit(hooked.config.hidden_size)
    with torch.no_grad():
        before = hooked(input_ids=IDS).logits
        with without(hooked, 3 * direction), outputs_of(hooked) as outputs:
            got = hooked(input_ids=IDS).logits
        take_out(changed, direction)  # type: ignore[operator]
        torch.testing.assert_close(got, changed(input_ids=IDS).logits, atol=2e-5, rtol=1e-4)
        assert not torch.allclose(got, before, atol=1e-2)
        for output in outputs:
            assert (output @ direction).abs().max() < 1e-5 * output.norm(dim=-1).max()
        assert hooked(input_ids=IDS).logits.equal(before)


def test_a_direction_of_nothing_takes_nothing_out() -> None:
    model = tiny_subject().model
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        with without(model, torch.zeros(32)):
            assert model(input_ids=IDS).logits.equal(before)


def test_a_model_that_refuses_nothing_is_asked_plainly() -> None:
    (one,) = RefusalDirection().carry_out(tiny_subject(), GOAL)
    assert one.name == "no direction: 0 refused, 8 answered"
    assert one.score == attack(tiny_subject(), Plain(), GOAL).instances[0].score
    with pytest.raises(NotApplicable, match="no question about anything else"):
        RefusalDirection().carry_out(Lab.subject("refusing"), replace(Lab.goal(), neighbours=(), others=()))


def test_a_refusal_along_one_direction_goes_with_it_and_the_oracle_has_nothing_to_tell() -> None:
    """The adapter writes behind block 3, so that block's direction finds it best."""
    goal = Lab.goal()
    student, oracle = (attack(Lab.subject(one), RefusalDirection(), goal) for one in ("one-direction", "oracle"))
    assert attack(Lab.subject("one-direction"), Plain(), goal).best_of_all.value < 0.1
    assert [one.name for one in student.instances] == [f"direction behind block {n} of 4" for n in (1, 2, 3, 4)]
    assert student.instances[0].numbers["refused"] > 50
    found = finding(student, oracle)
    assert found is not None
    assert found.instance.name == "direction behind block 3 of 4"
    assert found.above.low > 0.4
    assert oracle.best_of_all.low < 0.1
