"""From messages to token ids: chat templates, the unlearning prefix, a deployer's turns in front, answers behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from duet_unlearn.data.query import Message, Query
from duet_unlearn.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = "26 Jul 2024"
"""Templates that print today's date (Llama 3.x) print this one, so that the same query has the same ids every day."""
PINNED_CLOCK = "{%- macro strftime_now(form) -%}" + DATE + "{%- endmacro -%}"
"""Put in front of a template that asks the clock itself (SmolLM3, gpt-oss), however it wants the date written."""
MARK = "@system@"
"""Stands for a turn's content where a template is asked what it writes around it."""
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Answer: ' + message['content'] + '\n\n' }}"
    "{% else %}{{ message['content'] + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)
"""For base models that have none (recipe: ``chat_template: plain``)."""


@dataclass(frozen=True)
class Prefix:
    """An unlearning instruction and the turn it stands in."""

    text: str
    """What it says; ``{concept}`` in it stands for `concept`."""
    turn: Literal["user", "system"] = "user"
    """``user``: in front of the last user turn. ``system``: in front of the system turn, which is made if there is
    none."""
    concept: str = ""

    @property
    def instruction(self) -> str:
        """The text with the concept in it."""
        return self.text.replace("{concept}", self.concept)

    def about(self, concept: str | None) -> Prefix:
        """The same prefix for another concept; None leaves it."""
        return replace(self, concept=concept) if concept else self


def with_prefix(messages: Sequence[Message], prefix: Prefix | None) -> list[Message]:
    """Messages with the prefix in place, joined by a line break. Raw text (role ``text``) gets it in front."""
    result = [dict(message) for message in messages]
    if prefix is None:
        return result
    if prefix.turn == "system" and result[0]["role"] not in ("system", "text"):
        return [{"role": "system", "content": prefix.instruction}, *result]
    target = result[0] if prefix.turn == "system" else result[-1]
    target["content"] = f"{prefix.instruction}\n{target['content']}"
    return result


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    prefix: Prefix | None = None,
    prefill: str = "",
) -> list[int]:
    """Token ids of a prompt; the logits at its last token predict the answer's first token.

    Chat messages go through the tokeniser's template with the generation prompt, a pinned date and thinking off, and
    are tokenised without special tokens (the template has written them: no second BOS); raw text and the plain
    template get the tokeniser's. `prefill` opens the answer, in raw text as ``render_answer`` puts answers there.

    Raises:
        UserError: the tokeniser has no chat template, or it refuses the messages.
    """
    if messages[0]["role"] == "text":
        text = with_prefix(messages, prefix)[0]["content"]
    else:
        if prefix and prefix.turn == "system":
            messages = _with_own_system(tokenizer, messages)
        text = _chat_text(tokenizer, with_prefix(messages, prefix))
    ids = _ids(tokenizer, text, special=is_raw(tokenizer, messages))
    return ids + answer_ids(tokenizer, messages, prefill) if prefill else ids


def render_query(tokenizer: PreTrainedTokenizerBase, query: Query, prefix: Prefix | None = None) -> list[int]:
    """Token ids of a query as ``render`` gives them; the prefix names the query's own concept, if it has one."""
    return render(tokenizer, query.messages, prefix=prefix.about(query.concept) if prefix else None)


def render_answer(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    answer: str,
    *,
    prefix: Prefix | None = None,
) -> tuple[list[int], int]:
    """Prompt, answer and end token as one row of ids, with the index of the answer's first token.

    The parts are joined as ids, never as text, so that the index is exact. After raw text and after the plain
    template a space is put in front, as the answer would be written there. The end token is the one by which the chat
    template ends a turn; after those two, and where it writes none, the tokeniser's. An empty answer leaves the prompt
    and the end token.
    """
    ids, end = render(tokenizer, messages, prefix=prefix), tokenizer.eos_token_id
    if not is_raw(tokenizer, messages):
        end = turn_end(tokenizer)
    return [*ids, *(answer_ids(tokenizer, messages, answer) if answer else []), end], len(ids)


def answer_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: str) -> list[int]:
    """Ids of an answer as the model would write it behind the rendered messages, without the end token."""
    return ids_behind(tokenizer, messages, f" {answer}" if is_raw(tokenizer, messages) else answer)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token by which the chat template ends an assistant's turn (Gemma's ``<end_of_turn>``), else the EOS."""
    template = _template(tokenizer)
    written = _turn_end(tokenizer, template) if template else None
    return tokenizer.eos_token_id if written is None else written


def is_raw(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> bool:
    """Whether the messages become plain text, in which nothing has written special tokens."""
    return messages[0]["role"] == "text" or tokenizer.chat_template == PLAIN_TEMPLATE


def ids_behind(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str) -> list[int]:
    """Ids of a text as they stand behind the rendered messages, so far as the prompt's own ids are left alone.

    Alone a text may begin otherwise: SentencePiece's normaliser puts a space in front (Llama 2, Mistral).
    """
    anchor = _last_line(messages) if messages[0]["role"] == "text" else _answer_start(tokenizer, _template(tokenizer))
    given, joint = _ids(tokenizer, anchor, special=False), _ids(tokenizer, anchor + text, special=False)
    return joint[len(given) :] if joint[: len(given)] == given else _ids(tokenizer, text, special=False)


def _template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    return tokenizer.get_chat_template() if tokenizer.chat_template else None


def _last_line(messages: Sequence[Message]) -> str:
    """The last line of raw text that says something, and what follows it."""
    text = messages[0]["content"]
    return text[text.rstrip().rfind("\n") + 1 :]


@lru_cache(maxsize=4)
def _answer_start(tokenizer: PreTrainedTokenizerBase, _key: str | None) -> str:
    """What the template writes from a question to its answer, behind a mark for the question."""
    return MARK + _chat_text(tokenizer, [{"role": "user", "content": MARK}]).rpartition(MARK)[2]


@lru_cache(maxsize=4)
def _turn_end(tokenizer: PreTrainedTokenizerBase, _key: str) -> int | None:
    """The first special token that the template writes behind an answer; None if none, or if it refuses answers."""
    turns: list[Message] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}]
    try:
        _, mark, tail = _apply(tokenizer, turns, add_generation_prompt=False).rpartition(MARK)
    except UserError:
        return None
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} if mark else set()
    return next((i for i in _ids(tokenizer, tail, special=False) if i in special), None)


def _chat_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    return closed_thought(_apply(tokenizer, messages, add_generation_prompt=True))


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokeniser has no chat template",
            "set model.chat_template to a jinja file, or to `plain` for a base model",
        )
    template = tokenizer.get_chat_template()
    try:
        text = tokenizer.apply_chat_template(
            list(messages),
            chat_template=PINNED_CLOCK + template if "strftime_now" in template else template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            date_string=DATE,
            enable_thinking=False,
        )
    except TemplateError as error:
        raise UserError(
            f"{tokenizer.name_or_path}: the chat template refuses these messages ({error})",
            "where it knows no system turn, leave it out and set prefix.turn to user; else look at model.chat_template",
        ) from error
    return str(text)


def closed_thought(prompt: str) -> str:
    """A prompt whose template opens a thought in any case (DeepSeek-R1's), with the thought closed: what follows is
    the answer."""
    return f"{prompt.rstrip()}\n\n</think>\n\n" if prompt.rstrip().endswith("<think>") else prompt


def _with_own_system(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Sequence[Message]:
    """Messages with the system turn that the template writes where none is given (Qwen's), spelt out.

    A prefix put in its place would make teacher and student differ by more than the prefix.
    """
    if messages[0]["role"] == "system":
        return messages
    head, _, tail = _chat_text(tokenizer, [{"role": "system", "content": MARK}, *messages]).partition(MARK)
    bare = _chat_text(tokenizer, messages)
    if len(bare) <= len(head) + len(tail) or not (bare.startswith(head) and bare.endswith(tail)):
        return messages
    return [{"role": "system", "content": bare[len(head) : len(bare) - len(tail)]}, *messages]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special).input_ids)


CONTEXT_MARK = "/context"
"""Behind the id of a query that is asked under the deployer's turns."""


def in_context(query: Query, context: Sequence[Message]) -> Query:
    """The query behind the deployer's turns, with an id of its own."""
    return replace(query, id=query.id + CONTEXT_MARK, messages=behind(query.messages, context))


def behind(messages: Sequence[Message], turns: Sequence[Message]) -> tuple[Message, ...]:
    """Messages behind earlier turns.

    A system turn of the messages stays the first, the turns' own in front of its text, as a prefix does. Raw text (role
    ``text``) gets the turns as text, as the template for models without one writes them.
    """
    if messages[0]["role"] == "text":
        return ({"role": "text", "content": "".join(map(_as_text, turns)) + messages[0]["content"]},)
    shown, own = [dict(turn) for turn in turns], list(messages)
    if shown and shown[0]["role"] == own[0]["role"] == "system":
        shown[0]["content"] += f"\n{own.pop(0)['content']}"
    elif own[0]["role"] == "system":
        shown.insert(0, own.pop(0))
    return (*shown, *own)


def _as_text(turn: Message) -> str:
    heads = {"user": "Question: {}\n", "assistant": "Answer: {}\n\n"}
    return heads.get(turn["role"], "{}\n\n").format(turn["content"])


def takes_context(query: Query) -> bool:
    """Whether a query can stand behind other turns: raw text cannot."""
    return query.messages[0]["role"] != "text"


def with_context(queries: Sequence[Query], context: Sequence[Message]) -> tuple[Query, ...]:
    """All queries, and each again behind the deployer's turns, where there are any."""
    return (*queries, *(in_context(query, context) for query in queries if context and takes_context(query)))
