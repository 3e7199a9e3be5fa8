"""What a frozen model says at the positions that a loss reads, and what of it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from duet_unlearn.models.blocks import BlockIndex
from duet_unlearn.tensors import TopK, check_k, gather, token_logps, topk


class Dense(NamedTuple):
    """The whole row of logits at N positions."""

    logits_NV: Tensor


class Logps(NamedTuple):
    """The log-probability of the token that stands behind each of N positions, in nats: a reference's."""

    logps_N: Tensor


class TopLogps(NamedTuple):
    """The K largest log-probabilities at N positions, in falling order, and that of the token that stands behind each
    position, whatever its rank; in nats, over the whole vocabulary."""

    ids_NK: Tensor
    logps_NK: Tensor
    label_logps_N: Tensor


class Hidden(NamedTuple):
    """The hidden states behind a block at N positions."""

    hidden_ND: Tensor


Signal = TopK | Dense | Logps | TopLogps | Hidden
"""A method declares which of them it reads; it cannot tell a live model from a cached one."""


@dataclass(frozen=True)
class Keep:
    """What is kept of a frozen model's row of logits, or of its hidden states."""

    kind: Literal["topk", "dense", "logps", "top-logps", "hidden", "live"]
    """``topk``: the `k` largest, in fp32. ``dense``: all, in fp16. ``logps``: the log-probability of the label, in
    fp32. ``top-logps``: the `k` largest log-probabilities and the label's, in fp32. ``hidden``: the
    hidden state behind the block `layer`, in fp32. ``live``: all, and nothing is stored: a frozen copy of the model is
    asked at every step."""
    k: int | None = None
    layer: BlockIndex | None = None
    """None: logits are read."""

    def check(self, vocabulary: int) -> None:
        """Raises UserError: `k` exceeds the vocabulary."""
        if self.kind in ("topk", "top-logps"):
            check_k(self.k, vocabulary)

    def size(self, vocabulary: int, hidden: int) -> int:
        """Bytes that are stored of a position; `hidden`: the width of a hidden state."""
        kept = self.k or vocabulary
        stored = {"topk": 8 * kept, "dense": 2 * vocabulary, "logps": 4, "top-logps": 8 * kept + 4, "live": 0}
        return (stored | {"hidden": 4 * hidden})[self.kind]

    def of(self, logits_NV: Tensor, labels_N: Tensor | None) -> dict[str, Tensor]:
        """The tensors that are stored, on the CPU; what is live stays where it is. Of a layer, `logits_NV` are its (N,
        D) hidden states."""
        if self.kind == "live":
            return {"logits": logits_NV}
        if self.kind == "hidden":
            return {"hidden": logits_NV.float().cpu()}
        if self.kind == "dense":
            return {"logits": logits_NV.half().cpu()}
        if self.kind == "logps":
            assert labels_N is not None
            return {"logps": token_logps(logits_NV, labels_N).cpu()}
        if self.kind == "top-logps":
            assert labels_N is not None
            logps_NV = logits_NV.float().log_softmax(-1)
            best, label_logps_N1 = topk(logps_NV, self.k), gather(logps_NV, labels_N[:, None])
            kept = {"logps": best.logits_NK, "topk_ids": best.ids_NK.int(), "label_logps": label_logps_N1.squeeze(-1)}
            return {name: values.cpu() for name, values in kept.items()}
        kept = topk(logits_NV, self.k)
        return {"logits": kept.logits_NK.float().cpu(), "topk_ids": kept.ids_NK.int().cpu()}

    def signal(self, stored: dict[str, Tensor]) -> Signal:
        """The stored tensors as a signal."""
        if self.kind == "logps":
            return Logps(stored["logps"])
        if self.kind == "hidden":
            return Hidden(stored["hidden"])
        if self.kind in ("dense", "live"):
            return Dense(stored["logits"])
        ids_NK = stored["topk_ids"].long()
        if self.kind == "top-logps":
            return TopLogps(ids_NK, stored["logps"], stored["label_logps"])
        return TopK(ids_NK, stored["logits"])


def keep_rows(k: int | None) -> Keep:
    """The `k` largest logits of each row; None keeps whole rows."""
    return Keep("topk", k) if k else Keep("dense")
