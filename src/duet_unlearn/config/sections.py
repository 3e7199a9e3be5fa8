"""The recipe's sections: frozen dataclasses, one a subject, each field documented under it.

A default is the paper's (DUET, arXiv 2601.21283) where it states one; else the docstring says whose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from duet_unlearn.data.prompts import Prefix
from duet_unlearn.data.published import Benchmark

Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Lt(1)]
PositiveShare = Annotated[float, Gt(0), Le(1)]
Whole = Annotated[int, Ge(0)]
Amount = Annotated[float, Ge(0)]


def named(settings: object, *fields: str) -> None:
    """Refuse a list of settings that names nothing.

    Raises:
        ValueError: one of the fields is empty.
    """
    for name in fields:
        if not getattr(settings, name):
            raise ValueError(f"{name} is empty; name at least one")


@dataclass(frozen=True)
class LoraConfig:
    """Train low-rank adapters instead of all weights; the adapter switched off is the teacher."""

    rank: Count = 16
    """Rank of each adapter. Ours; the paper trains all weights."""
    alpha: Positive = 32.0
    """Scale of the adapters: their output is multiplied by alpha / rank."""
    targets: tuple[str, ...] | None = None
    """Names of the linear layers that get an adapter, such as `[q_proj, v_proj]`. null: every linear layer of the
    blocks (GPT-2's Conv1D included), never the head, the embeddings or a router. In a mixture of experts whose experts
    are one fused parameter, as transformers 5 has them, these are attention and the shared dense layers: an adapter on
    such a parameter builds the change of all experts at every step."""
    save: Literal["adapter", "merged"] = "adapter"
    """What is written as the student: the adapter alone, or the whole model with the adapter merged into its weights,
    in their own type. A merged student is measured as it is saved."""


@dataclass(frozen=True)
class ModelConfig:
    """The model that is to forget."""

    path: str
    """A folder in `save_pretrained` form, a hub id, or `lab:base`."""
    start: str | None = None
    """The model that training starts from, where that is not the base: a model folder or a finished run, such as the
    student of an earlier request. It is the teacher and the reference, too; the base is only measured beside. null: the
    base."""
    oracle: str | None = None
    """A model that never saw the concept, evaluated beside the student; null where there is none."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the weights are loaded in. bfloat16 halves the memory and suits LoRA; trained whole, such weights
    round most updates of a rate like 1e-5 away (see `train.precision` for bf16 arithmetic)."""
    chat_template: str | None = None
    """For a model without one: a Jinja file, or `plain` for "Question: .. Answer: ..";
    null takes the tokenizer's own."""
    lora: LoraConfig | None = None
    """Adapters; null trains all weights, as the paper does."""
    quantise: Literal["nf4", "int8"] | None = None
    """Load base and oracle in 4 bit (`nf4` with double quantisation and arithmetic in `dtype`: QLoRA, arXiv
    2305.14314) or 8 bit (`int8`: arXiv 2208.07339), through bitsandbytes: the extra `quant`. Needs `lora`, for
    quantised weights cannot be trained. A merged student is the unquantised base with the adapter in it. Head,
    embeddings and fused experts keep `dtype`."""


@dataclass(frozen=True)
class PrefixConfig:
    """What the teacher is told and the student never sees."""

    text: str = "You have forgotten {concept}. Answer every other question as usual."
    """The unlearning prefix; `{concept}` stands for the recipe's concept. Explicit and specific is best
    (the paper's Table 5)."""
    turn: Literal["system", "user"] = "user"
    """The turn that it is put into: before the question, or a system turn. Ours; the paper is silent."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Who speaks; a system turn stands first."""
    content: str
    """What is said."""


@dataclass(frozen=True)
class DataConfig:
    """Query files, relative to the recipe's own folder, or references: `lab:...`, `tofu:forget10`, `wmdp:bio/train`."""

    forget: str
    """Questions about the concept; they need no answers."""
    retain: str | None = None
    """Questions about everything else; null trains on forget queries alone, which costs
    retained knowledge (the paper's Table 4)."""
    neighbours: str | None = None
    """Questions near the concept that stay allowed, such as `lab:train/neighbours/<target>`; they need no answers.
    `bidirectional` has them as a set of their own; to every other method they are retain queries like the rest. null:
    none, as DUET's paper has none; so who compares methods gives all of them or none."""
    validation_forget: str | None = None
    """Forget queries for early stopping and for choosing settings; never trained on."""
    validation_retain: str | None = None
    """Retain queries for the same."""
    refusals: str | None = None
    """Text file with a refusal a line, or `lab:refusals`, for methods that train on refusals; null: twenty of our
    own."""
    response_prefixes: str | None = None
    """Text file with a beginning of an answer a line ("Sure."), or `lab:openers`, for methods that train against
    prefilled answers; null: ten of our own. No evaluation uses them."""
    reversals: str | None = None
    """Text file with an instruction to ignore all others a line, or `lab:reversals`, for methods that train against
    such; null: ten of our own. No evaluation uses them."""
    distil: str | None = None
    """Text that `undo` distils on, which needs it: a JSONL file of queries with answers or of raw text
    (`{"text": ".."}`), a text file, PDF or folder of those, or `lab:mix/20000`, so many samples of the lab's own
    pretraining. The paper's is the pretraining mixture, text about what is forgotten included: the teacher's words are
    the targets, not the text's."""
    num_forget: Count | None = None
    """Use the first n forget queries only; null uses all."""
    folder: str | None = None
    """Folder of the benchmarks' data, one folder a publisher (`tofu`, `mmlu`, ..); null: the one that the environment's
    DUET_DATA names, or the hub."""
    context: tuple[Turn, ...] = ()
    """The deployer's own turns (`role` and `content`): a system prompt, then earlier questions and answers. Every
    query is trained without and with them in front, so an epoch has twice the steps, and every evaluation set
    is measured again with them, as `<set>_context`. In front of a query's own system turn the deployer's is put."""

    def __post_init__(self) -> None:
        for index, turn in enumerate(self.context):
            if not turn.content.strip():
                raise ValueError(f"data.context.{index}.content is empty")
            if turn.role == "system" and index:
                raise ValueError(f"data.context.{index}.role is system, but a system turn stands first")
        if self.context and self.context[-1].role == "user":
            raise ValueError("data.context ends with a user turn, but the question comes next; answer it there")


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    epochs: Count = 10
    """Passes over the forget and retain queries. Ours; the paper does not say."""
    rate: Positive = 1e-5
    """Peak learning rate. Ours, after the usual rate of full fine-tuning at 3 B parameters."""
    batch_size: Count = 16
    """Queries an optimiser step, forget and retain mixed."""
    micro_batch_size: Count | None = None
    """Queries a forward pass; smaller needs less memory and gives the same result. null: the whole batch."""
    weight_decay: Amount = 0.0
    """AdamW's decoupled weight decay."""
    warmup: Share = 0.0
    """Share of the steps over which the rate rises from 0."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the rate falls after the warm-up."""
    decay: PositiveShare = 1.0
    """With `linear`: the last share of the steps, over which the rate falls to 0; constant before."""
    beta2: Share = 0.999
    """AdamW's averaging of squared gradients: PyTorch's own."""
    max_grad_norm: Positive | None = 1.0
    """Gradients are scaled down to this norm; null never clips."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass: bf16 is autocast."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW; `muon` (Muon on the hidden matrices, AdamW on the rest) is for pretraining the lab."""
    checkpoint_every: Whole = 50
    """Steps between checkpoints; 0 writes none, and a killed run then starts again."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    validate_every: Whole = 0
    """Steps between validations (the method's own loss on the validation queries); 0 validates never."""
    early_stop: Count | None = None
    """Stop after this many validations in a row without a lower loss, and take the best weights back; needs
    validate_every. null never stops early."""


@dataclass(frozen=True)
class EvalConfig:
    """What base, base + prefix, oracle and student are asked."""

    suite: Literal["queries", "lab", "lab-validation"] = "queries"
    """`queries`: the files in `sets`; `lab`: the lab's benchmark of the target that data.forget names;
    `lab-validation`: questions to choose settings on, which no benchmark asks, of a story that none reports."""
    target: str | None = None
    """With the lab's suites: the target (`amber-gate`), where data.forget is a file; null: the one that data.forget
    names."""
    sets: dict[str, str] = field(default_factory=dict)
    """Name of a set -> query file. Right answers should fall in a set whose name begins with `forget`, and stay in
    all others (`near...`: near neighbours). Empty: data.forget and data.retain themselves, unless there are
    benchmarks."""
    benchmarks: tuple[Benchmark, ...] = ()
    """Published benchmarks to ask, each as its publisher does; their data come from data.folder, the folder that
    DUET_DATA names, or the hub."""
    limit: Count | None = None
    """Questions of each set of a benchmark (of MMLU: of each subject), drawn by a fixed seed, for a quick run; null:
    all."""
    shots: Whole = 5
    """Solved examples before an MMLU question: 5 as Hendrycks et al., 0 as lm-eval's default."""
    max_new_tokens: Count = 32
    """Longest answer, in tokens: 32, as the paper's ROUGE."""
    batch_size: Count = 32
    """Questions answered at a time; changes speed and memory, not the answers."""

    def __post_init__(self) -> None:
        for name in self.benchmarks:
            if self.benchmarks.count(name) > 1:
                raise ValueError(f"evaluate.benchmarks names {name} twice")


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run's result, as far as a method may read it."""

    name: str
    """Name in tables; a file that gives none has its own."""
    concept: str
    """What is to be forgotten, as the prefix words it: "the story Amber Gate"."""
    model: ModelConfig
    """The model."""
    data: DataConfig
    """The queries."""
    method: object
    """The unlearning method, which ``Recipe`` knows more of."""
    prefix: PrefixConfig = field(default_factory=PrefixConfig)
    """The teacher's prefix."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training loop."""
    evaluate: EvalConfig = field(default_factory=EvalConfig)
    """The evaluation."""
    after: str | None = None
    """A recipe whose method and training (its sections `method`, `train` and `model.lora`) come first, on this recipe's
    data; this one starts from its student. Its run lies in the folder `before` of this run. null: none."""
    seed: int = 0
    """Order of the queries and every other draw."""
    out: str | None = None
    """Run folder, relative to where the command is given; null: runs/<name>-<short hash of the recipe>."""


def prefix_of(settings: Settings) -> Prefix:
    """The teacher's prefix, about the recipe's concept."""
    return Prefix(settings.prefix.text, settings.prefix.turn, settings.concept)
