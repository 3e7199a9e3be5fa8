"""Methods that only look at the question: a detector of forget queries, and what is done with those it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from duet_unlearn.config.sections import Amount, Count, Positive, Share, Whole
from duet_unlearn.evals.detector import Pooling
from duet_unlearn.training.step import Need


@dataclass(frozen=True)
class Guard:
    """No training of the model: a detector of forget queries stands before it and answers those with a refusal (a
    guardrail, arXiv 2403.03329). The detector is a logistic regression on hidden states of the model itself, fitted to
    the forget and the retain queries."""

    name: Literal["guard"] = "guard"
    layer: Whole | None = None
    """Block of the model whose output is read, from 0; null: the one at half the depth. Ours."""
    pooling: Pooling = "last"
    """The prompt's `last` token alone, which has read all others, or the `mean` over its tokens, which longer prompts
    dilute. Ours."""
    l2: Positive = 0.01
    """Weight of half the squared norm of the regression's weights, beside its mean loss. Ours."""
    threshold: Share = 0.5
    """Probability from which a prompt counts as a forget query."""

    needs: ClassVar[frozenset[Need]] = frozenset({"retain", "refusals"})


@dataclass(frozen=True)
class Eco:
    """No training of the model: a detector, as `guard`'s, finds forget queries, and noise is added to the embeddings of
    their tokens (ECO, embedding-corrupted prompts, arXiv 2406.07933). As in the released code the prompt's last token
    is left alone, and so is whatever the answer begins with."""

    name: Literal["eco"] = "eco"
    sigma: Amount = 5.0
    """Standard deviation of the Gaussian noise, in the units of the embeddings. The paper searches one for each model;
    its code tries 5 and more, in one dimension. 0 changes nothing."""
    dims: Count | None = 1
    """How many of the embedding's numbers get noise, from the first; null: all. 1, as most of the paper's runs."""
    layer: Whole | None = None
    """Block of the model whose output the detector reads, from 0; null: the one at half the depth. Ours; the paper
    trains a classifier of its own, RoBERTa."""
    pooling: Pooling = "last"
    """The prompt's `last` token alone, which has read all others, or the `mean` over its tokens, which longer prompts
    dilute. Ours."""
    l2: Positive = 0.01
    """Weight of half the squared norm of the regression's weights, beside its mean loss. Ours."""
    threshold: Share = 0.5
    """Probability from which a prompt counts as a forget query: the released code's default."""

    needs: ClassVar[frozenset[Need]] = frozenset({"retain"})
