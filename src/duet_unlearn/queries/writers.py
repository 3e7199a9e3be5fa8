"""Who writes the questions, a local model or a server, and the file of what was written, from which a stopped
extraction goes on."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from duet_unlearn.data.files import disk_errors
from duet_unlearn.data.prompts import render
from duet_unlearn.errors import UserError, needs_extra
from duet_unlearn.lab.references import model_path
from duet_unlearn.models.load import load_model
from duet_unlearn.teacher.decoding import end_ids, evaluating, greedy, pad_id
from duet_unlearn.tensors import batches, pad

if TYPE_CHECKING:
    import openai
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOP_P = 0.95
"""Sampling leaves out the least likely twentieth: what comes from there is seldom a question."""
BATCH = 32
"""Prompts that a local model answers at a time."""
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses of a server that is busy or has a bad moment."""
MAX_WAIT = 60.0
"""Seconds that a server may ask to be left alone for."""
ADDRESS = re.compile(r"https?://(?:\[[^\s/\]]+\]|[^\s/:\[]+)(?::\d{1,5})?(?:/\S*)?")
NO_KEY = "no-key"
"""What the client is given where there is no key; the header is left out then."""
HINTS = {
    401: "set OPENAI_API_KEY to a key of this server",
    403: "set OPENAI_API_KEY to a key that may use this model",
    404: "does the server have a model {model!r}, and does the address end in /v1?",
}
LOG = logging.getLogger("duet_unlearn")


@dataclass(frozen=True)
class LocalWriter:
    """A causal language model with a chat template."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = BATCH

    def write(self, prompts: Sequence[str], *, temperature: float, seed: int, max_new_tokens: int) -> list[str]:
        """An answer to each prompt; `temperature` 0 is greedy.

        The same prompts in the same order with the same seed give the same answers.
        """
        rows = [render(self.tokenizer, ({"role": "user", "content": prompt},)) for prompt in prompts]
        if temperature == 0:
            responses = greedy(
                self.model,
                rows,
                eos_ids=end_ids(self.model, self.tokenizer),
                padding_id=pad_id(self.tokenizer),
                max_new_tokens=max_new_tokens,
                batch_size=self.batch_size,
            )
        else:
            responses = self._sample(rows, temperature, seed, max_new_tokens)
        return [str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in responses]

    def _sample(self, rows: list[list[int]], temperature: float, seed: int, max_new_tokens: int) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in rows]
        cards = [self.model.device] if self.model.device.type == "cuda" else []
        # `generate` draws from the global generator and takes no other.
        with evaluating(self.model), torch.random.fork_rng(cards):
            torch.manual_seed(seed)
            for indices in batches([len(row) for row in rows], batch_size=self.batch_size):
                padded = pad([rows[index] for index in indices], pad_id(self.tokenizer), side="left")
                ids_BT = self.model.generate(  # type: ignore[operator]
                    padded.ids_BT.to(self.model.device),
                    attention_mask=padded.mask_BT.to(self.model.device),
                    do_sample=True,
                    temperature=temperature,
                    top_p=TOP_P,
                    top_k=0,
                    max_new_tokens=max_new_tokens,
                    pad_token_id=pad_id(self.tokenizer),
                    eos_token_id=sorted(end_ids(self.model, self.tokenizer)),
                )
                for index, row in zip(indices, ids_BT[:, padded.ids_BT.shape[1] :].tolist(), strict=True):
                    found[index] = row
        return found


def local_writer(path: str) -> LocalWriter:
    """A model folder, a hub id or a ``lab:`` model, in bfloat16 on a card and float32 elsewhere.

    Raises:
        UserError: as ``load_model``; a model without a chat template.
    """
    folder = str(model_path(path)) if path.startswith("lab:") else path
    model, tokenizer = load_model(folder, dtype="bfloat16" if torch.cuda.is_available() else "float32")
    if not tokenizer.chat_template:
        raise UserError(
            f"{path}: the tokeniser has no chat template",
            "name a model that follows instructions; it need not be the one that is to forget",
        )
    return LocalWriter(model, tokenizer)


class _TryAgain(Exception):
    """The request may work if it is sent once more, after the seconds that the server asked for, if it did."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


@dataclass(frozen=True)
class ServerWriter:
    """A model behind an OpenAI-compatible server (vLLM, llama.cpp, Ollama, TGI, OpenAI), by chat completions.

    The key is that of OPENAI_API_KEY, if set. It is no field: what is printed of a writer must not hold it.
    """

    address: str
    """Such as ``http://127.0.0.1:8000/v1``."""
    model: str
    batch_size: int = 8
    """Requests at a time."""
    timeout: float = 120.0
    """Seconds without a word from the server."""
    tries: int = 5
    """Times that a request is sent at most."""
    wait: float = 1.0
    """Seconds before the second try, doubled before each further one, unless the server names them itself."""

    def __post_init__(self) -> None:
        if not ADDRESS.fullmatch(self.address):
            raise UserError(
                f"--server: {self.address!r} is no address of a server", "give one such as http://127.0.0.1:8000/v1"
            )

    def write(self, prompts: Sequence[str], *, temperature: float, seed: int, max_new_tokens: int) -> list[str]:
        """An answer to each prompt; `temperature` 0 is greedy.

        Raises:
            UserError: nobody answers, the key or the model is refused, or the answers stay unusable.
        """
        with needs_extra("server", f"--server {self.address}"):
            import openai
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        # The HTTP client would put a header that it refuses, and so the key, into its error.
        if not (key.isascii() and key.isprintable()):
            raise UserError("OPENAI_API_KEY holds characters that no key can have", "set it to the key alone")
        settings = {"model": self.model, "temperature": temperature, "max_tokens": max_new_tokens}
        settings |= {} if key else {"extra_headers": {"Authorization": openai.Omit()}}
        with (
            openai.OpenAI(
                base_url=self.address,
                api_key=key or NO_KEY,
                timeout=self.timeout,
                max_retries=0,  # the package's own retries wait otherwise, and know no answer that is unusable
                http_client=openai.DefaultHttpxClient(follow_redirects=False),  # the key is for this address alone
            ) as client,
            ThreadPoolExecutor(self.batch_size) as pool,
        ):
            seeds = range(seed, seed + len(prompts))
            return list(pool.map(lambda prompt, seed: self._retry(client, settings, prompt, seed), prompts, seeds))

    def _retry(self, client: openai.OpenAI, settings: Mapping[str, Any], prompt: str, seed: int) -> str:
        body = {"messages": [{"role": "user", "content": prompt}], "seed": seed, **settings}
        for attempt in range(1, self.tries + 1):
            try:
                return self._send(client, body)
            except _TryAgain as again:
                if attempt == self.tries:
                    raise UserError(
                        f"{self.address}: no usable answer in {self.tries} tries ({again})",
                        "see the server's log; what was answered before is kept, and the same command goes on",
                    ) from again
                seconds = min(self.wait * 2 ** (attempt - 1) if again.wait is None else again.wait, MAX_WAIT)
                LOG.warning("warning: %s: %s; again in %.1f s", self.address, again, seconds)
                time.sleep(seconds)
        raise AssertionError("tries is 1 at least")

    def _send(self, client: openai.OpenAI, body: dict[str, Any]) -> str:
        """The text of one chat completion; a model that says nothing says the empty text."""
        import openai

        try:
            # Read by hand: the package takes anything for a completion, also a page of HTML.
            reply = client.chat.completions.with_raw_response.create(**body).content
        except openai.APITimeoutError as error:
            raise _TryAgain(f"no answer within {self.timeout:g} s") from error
        except openai.APIStatusError as error:
            raise self._refusal(error, key=client.api_key) from None  # its own text is the server's, key and all
        except openai.APIConnectionError as error:
            cause: BaseException | None = error
            while cause and not isinstance(cause, OSError):  # what the operating system had to say lies below
                cause = cause.__cause__ or cause.__context__
            # A connection that is refused will be refused again; one that broke may hold the next time.
            if cause is None or (isinstance(cause, ConnectionError) and not isinstance(cause, ConnectionRefusedError)):
                raise _TryAgain("the connection broke") from error
            raise UserError(
                f"{self.address}: no server answers there ({getattr(cause, 'strerror', None) or cause})",
                "start it, or correct the address; it usually ends in /v1",
            ) from error
        try:
            return json.loads(reply)["choices"][0]["message"]["content"] or ""
        except (ValueError, LookupError, TypeError) as error:
            shown = _one_line(reply.decode("utf-8", "replace"), key=client.api_key, length=80)
            raise _TryAgain(f"not a chat completion: {shown!r}") from error

    def _refusal(self, error: openai.APIStatusError, *, key: str) -> Exception:
        """What a status means: try again, or something that the user can put right."""
        if error.status_code in RETRIED:
            seconds = error.response.headers.get("Retry-After", "")
            return _TryAgain(f"status {error.status_code}", float(seconds) if seconds.isdigit() else None)
        text = _one_line(error.response.text, key=key, length=200)
        hint = HINTS.get(error.status_code, "the server says why; correct the address, the model or the settings")
        return UserError(
            f"{self.address}: status {error.status_code}: {text or error.response.reason_phrase}",
            hint.format(model=self.model),
        )


def _one_line(text: str, *, key: str, length: int) -> str:
    """The beginning of what a server wrote; some servers repeat the key that they refuse."""
    return " ".join(text.replace(key, "[key]")[:2000].split())[:length]


Writer = LocalWriter | ServerWriter


def read_answers(path: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """The answers of a stopped extraction by their key; none where there is no file.

    A line of the file is what one call of the writer gave, so that no call is half there; a torn last one is cut off.

    Args:
        settings: The first line: what all answers depend on.

    Raises:
        UserError: it was begun with another model or other settings.
    """
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with disk_errors(path), path.open("r+b") as file:
            file.truncate(len(whole))
    begun, *rows = [json.loads(line) for line in whole.decode("utf-8").split("\n") if line] or [settings]
    if begun != settings:
        other = ", ".join(name for name in settings if begun.get(name) != settings[name])
        raise UserError(
            f"{path}: was begun with another {other or 'setting'}",
            "give that command again, choose another --out, or delete the file",
        )
    return {key: answer for row in rows for key, answer in row.items()}


def append_answers(path: Path, settings: Mapping[str, Any], answers: Mapping[str, str]) -> None:
    """Add what one call of the writer gave; the first one brings the settings with it."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            rows = [answers] if file.tell() else [settings, answers]
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
