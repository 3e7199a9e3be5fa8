"""What a method is: a frozen dataclass of settings that owns its life, from the rows it is trained on to the subject
that is asked afterwards.

The pipeline calls the hooks of ``Method`` in the order in which they stand here and knows no method by name. Each has a
default that does the usual thing; a method overrides what differs. ``ForgetAndRetain`` is the base of those whose loss
is a term on the forget queries plus a term on the retain queries' answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from duet_unlearn.config.sections import Positive, Settings, TrainConfig
from duet_unlearn.data.examples import Example, Pick, Role, TrainingData
from duet_unlearn.data.query import Message, Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.events import OnEvent
from duet_unlearn.losses import cross_entropy, dpo, forward_kl
from duet_unlearn.models.blocks import BlockIndex
from duet_unlearn.models.quantise import is_quantised
from duet_unlearn.runs import Run
from duet_unlearn.teacher.targets import Dense, LogitsFn, TargetSpec
from duet_unlearn.training.step import LossOut, Part, Step, Term, combine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Need = Literal[
    "teacher",
    "retain",
    "answers",
    "refusals",
    "alternatives",
    "reference",
    "texts",
    "reinforced",
    "neighbours",
    "openings",
]
"""``teacher``: the unlearning prefix. ``retain``: retain queries. ``answers``: the forget queries' answers.
``refusals``: texts that refuse. ``alternatives``: wrong answers to the forget queries. ``reference``: the base model's
log-probabilities or logits. ``texts``: text to distil on. ``reinforced``: a second model, trained on the forget answers
for a while. ``neighbours``: tells neighbours from retain queries. ``openings``: response prefixes, and texts that bid
the model ignore its instructions. The words stand in the stored results of sweeps, so they are not renamed."""
Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Context:
    """What a method may know of the run that it is part of."""

    run: Run
    settings: Settings
    """The recipe, whatever its method."""
    data: TrainingData
    """What is trained on."""
    validation: TrainingData
    weights: str
    """Identity of the model that training starts from."""
    shown_turns: tuple[Message, ...]
    """What the method shows in front of every question."""
    load_model: Callable[[str], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    """Another model, from its folder, as the recipe has models loaded."""
    on_event: OnEvent


@dataclass(frozen=True)
class PreparedTeacher:
    """What a method prepared before the frozen model is asked."""

    logits_fns: Mapping[Role, LogitsFn] = field(default_factory=dict)
    """The logits on given answers, of the roles where they are not the frozen model's own."""
    fingerprint: str = ""
    """What the targets depend on besides the frozen model's weights and the rows."""
    state: Any = None
    """For the method's own later hooks, such as a second model."""


@dataclass(frozen=True)
class Served:
    """What the subject of a method that changes no weights is built of."""

    name: str
    """The subject's."""
    model: PreTrainedModel
    """Unchanged."""
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    """Where ``save_subject`` wrote."""
    stored: Mapping[str, Any]
    """What ``save_subject`` gave."""
    settings: Settings

    @property
    def bare(self) -> ModelSubject:
        """The model alone as a subject."""
        return ModelSubject(self.name, self.model, self.tokenizer)


@dataclass(frozen=True)
class StopRule:
    """When training is to stop before its last step."""

    every: int
    """Steps between two looks."""
    at_least: float
    """The score at which it stops."""
    score: Callable[[nn.Module], float]
    """Of the student in training; logged as `right`."""


@dataclass(frozen=True)
class Method:
    """One way of unlearning and its settings."""

    name: str = ""

    needs: ClassVar[frozenset[Need]] = frozenset()
    trains: ClassVar[bool] = True
    """Whether the loop trains something on the method's examples; if not, ``finish`` or the subject is all."""
    changes_weights: ClassVar[bool] = True
    """Whether the student is a model. If not, the model's weights stay as they are: something stands beside them, and
    the student is a subject (``save_subject``, ``build_subject``)."""
    takes_adapters: ClassVar[bool] = True
    """Whether `model.lora` has a meaning for it."""
    splits_gradients: ClassVar[bool] = False
    """Whether the gradient of each role is taken apart, and ``combine_gradients`` makes one of them."""
    trains_a_copy: ClassVar[bool] = False
    """Whether the base stays in memory beside what is trained (for ``duet plan``)."""

    # Before any work is done -----------------------------------------------------------------------------------------

    def validate(self, settings: Settings, validation: TrainingData) -> None:
        """Check what does not go together, before any file of queries is turned into rows.

        Raises:
            UserError: a setting that this method cannot work with.
        """

    def check_packing(self, settings: Settings, *, quantised: bool) -> None:
        """Check that the weights can be trained as they are packed; asked of the settings and then of the model.

        Raises:
            UserError: quantised weights without adapters.
        """
        if quantised and settings.model.lora is None and self.changes_weights:
            raise UserError(
                f"{settings.model.path}: quantised weights cannot be trained, and model.lora is null",
                "set model.lora, for example {rank: 16}; or take the unquantised model, and model.quantise: null",
            )

    def check_model(self, model: PreTrainedModel, settings: Settings) -> None:
        """Check what the method reads and trains against the model.

        Raises:
            UserError: packed weights that it cannot train; a K above the vocabulary.
        """
        self.check_packing(settings, quantised=is_quantised(model))
        self.check_targets(model.config.get_text_config().vocab_size)

    def check_targets(self, vocabulary: int) -> None:
        """Raises UserError: what the target cache is to hold does not exist, for K exceeds the vocabulary."""
        for role in get_args(Role):
            if spec := self.target_spec(role):
                spec.check(vocabulary)

    def trainings(self, train: TrainConfig) -> list[tuple[Method, TrainConfig]]:
        """What is trained, and how: the student first, then a second model; for ``duet plan``.

        Raises:
            UserError: nothing is trained.
        """
        if self.trains:
            return [(self, train)]
        raise UserError(f"method {self.name}: trains nothing", "`duet run` needs little more than the model itself")

    def select_data(self, data: TrainingData) -> TrainingData:
        """What of a split is used: neighbours are retain queries to a method that does not tell them from those."""
        return replace(data, retain=(*data.retain, *data.neighbours), neighbours=())

    def shown_turns(self, data: TrainingData) -> tuple[Message, ...]:
        """Turns that stand in front of whatever is asked."""
        return ()

    def longest_prompts(self, data: TrainingData, *, room: int) -> Iterator[tuple[Query, str, int]]:
        """Every query that is trained on, at its longest, with what opens its answer and how many tokens may follow."""
        yield from ((query, "", room) for query in (*data.forget, *data.retain, *data.neighbours))

    @property
    def probe_k(self) -> int | None:
        """K of the first-token overlap that the probe reports; 1000 where the method has no K of its own."""
        return 1000

    # The frozen model ------------------------------------------------------------------------------------------------

    def trained_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """What is trained: the model itself, or another in its place."""
        return model

    def prepare_teacher(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: Context
    ) -> PreparedTeacher:
        """Before the frozen model is asked: a second model, for one."""
        return PreparedTeacher()

    def prepare_data(
        self,
        data: TrainingData,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        context: Context,
        split: Split,
    ) -> TrainingData:
        """Complete a split's data where its examples depend on what the frozen model says."""
        return data

    def build_examples(self, data: TrainingData) -> list[Example]:
        """The rows of a split."""
        return data.answers("forget")

    def target_spec(self, role: Role) -> TargetSpec | None:
        """What the loss reads of the frozen model on the rows of a role; None: nothing, and it is not asked."""
        return None

    # Training --------------------------------------------------------------------------------------------------------

    @property
    def hidden_block(self) -> BlockIndex | None:
        """The block whose output the loss reads in place of logits; nothing above it is computed then."""
        return None

    def stop_rule(
        self, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: Context
    ) -> StopRule | None:
        """When to stop early, set by the frozen model; None: with the last step."""
        return None

    def choose_weights(self, model: nn.Module) -> None:
        """Freeze what is not trained.

        Raises:
            UserError: what is trained is not in the model.
        """

    def prepare_student(self, model: PreTrainedModel, teacher: PreparedTeacher, context: Context) -> None:
        """Change the model before its first step, after the frozen model was asked: put noise into it, for one."""

    def choose_examples(
        self, student: nn.Module, examples: Sequence[Example], context: Context, *, pad_id: int
    ) -> Pick | None:
        """Which row of each pool an epoch meets; None: one that is drawn."""
        return None

    def loss(self, step: Step) -> LossOut:
        """The loss of a micro-batch: a sum, a count and their unit; the loop divides by the count of the whole step."""
        raise NotImplementedError(self.name)

    def combine_gradients(self, gradients: Mapping[Role, Sequence[Tensor | None]]) -> list[Tensor | None]:
        """One gradient of each role's own, where ``splits_gradients`` is set."""
        raise NotImplementedError(self.name)

    # After training --------------------------------------------------------------------------------------------------

    def finish(self, student: nn.Module, teacher: PreparedTeacher) -> nn.Module:
        """The student after training, or in its place: an edit of the model."""
        return student

    def save_subject(
        self, student: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, context: Context
    ) -> dict[str, Any]:
        """Of a method that changes no weights: write what stands beside the model, and give what ``subject.json`` is to
        hold."""
        return {}

    def build_subject(self, served: Served) -> Subject:
        """Of a method that changes no weights: the unchanged model with what ``save_subject`` wrote."""
        raise NotImplementedError(self.name)


# Terms of losses -----------------------------------------------------------------------------------------------------

Retain = Literal["none", "ce", "kl"]
"""``ce``: cross entropy of the answers ("gradient difference"); ``kl``: KL(reference || student) over the whole
vocabulary at the answers' tokens, the reference's logits being computed once; ``none`` reads no retain query."""


@dataclass(frozen=True)
class ForgetAndRetain(Method):
    """A method with a term on the forget queries of its own, and the usual term on the retain queries' answers."""

    retain: Retain = "none"
    """Term on the retain queries: none, ce (their answers) or kl (to the base model)."""
    retain_weight: Positive = 1.0
    """Weight of the retain term. 1 is the paper's of ga (TOFU), npo and altpo; ours elsewhere: the others have none."""

    def forget_examples(self, data: TrainingData) -> list[Example]:
        """The rows of the forget term."""
        return data.answers("forget")

    def forget_spec(self, role: Role) -> TargetSpec | None:
        """What the forget term reads of the frozen model on the rows of a role that is not `retain`."""
        return None

    def forget_term(self, step: Step) -> Term | None:
        """The forget term: here the mean of ``token_losses`` over the forget answers' tokens."""
        return token_term(step, self.token_losses)

    def token_losses(self, part: Part) -> Tensor:
        """(N,) losses of the forget answers' tokens."""
        raise NotImplementedError(self.name)

    def build_examples(self, data: TrainingData) -> list[Example]:
        """The forget rows; retain answers only where there is a term on them, so that no forward pass has weight 0."""
        return self.forget_examples(data) + (data.answers("retain") if self.retain != "none" else [])

    def target_spec(self, role: Role) -> TargetSpec | None:
        """What the forget term reads, and the reference's logits where KL reads them."""
        if role == "retain":
            return TargetSpec("dense") if self.retain == "kl" else None
        return self.forget_spec(role)

    def loss(self, step: Step) -> LossOut:
        """The forget term plus the weighted retain term, each a mean over the whole optimiser step."""
        retain = None
        if self.retain != "none":
            retain = token_term(step, self._retain_losses, role="retain", weight=self.retain_weight)
        return combine(step, self.forget_term(step), retain)

    def _retain_losses(self, part: Part) -> Tensor:
        if self.retain == "kl":
            assert isinstance(part.targets, Dense)
            return forward_kl(part.logits_NV, part.targets.logits_NV)
        return cross_entropy(part.logits_NV, part.tokens_N)


def token_term(
    step: Step, loss: Callable[[Part], Tensor], *, role: Role = "forget", weight: float = 1.0
) -> Term | None:
    """The mean over a role's positions of a loss that gives (N,) values; None where the micro-batch has none."""
    part = step.part(role)
    return Term(loss(part).sum(), step.totals.positions[role], weight) if part else None


def answer_term(step: Step, loss: Callable[[Part], Tensor]) -> Term | None:
    """The mean over the forget rows of a loss that gives (B,) values."""
    part = step.part("forget")
    return Term(loss(part).sum(), step.totals.rows["forget"]) if part else None


def pair_term(step: Step, loss: Callable[[Part, Part], Tensor], *, weight: float = 1.0) -> Term | None:
    """The mean over pairs of a loss of the preferred and the forgotten rows, in this order, that gives (B,) values.

    A pair is never parted, so both have the same rows in the same order.
    """
    win, lose = step.part("preferred"), step.part("forget")
    if win is None or lose is None:
        return None
    assert win.num_rows == lose.num_rows
    return Term(loss(win, lose).sum(), step.totals.rows["forget"], weight)


def dpo_term(step: Step, *, beta: float, weight: float = 1.0) -> Term | None:
    """The mean over pairs of DPO's loss."""

    def loss(win: Part, lose: Part) -> Tensor:
        return dpo(win.logps_B, win.reference_B, lose.logps_B, lose.reference_B, beta=beta)

    return pair_term(step, loss, weight=weight)
