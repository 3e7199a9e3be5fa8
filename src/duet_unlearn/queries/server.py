"""A client of OpenAI-compatible servers (vLLM, llama.cpp, Ollama, TGI, OpenAI): chat completions, nothing else.

https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from duet_unlearn.errors import UserError

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
"""Answers of a server that is busy or has a bad moment."""
LONGEST_WAIT = 60.0
"""Seconds that a server may ask to be left alone for."""
LOG = logging.getLogger("duet_unlearn")


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key is for the address that the user gave."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None


class _Again(Exception):
    """The request may work if it is sent once more."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


@dataclass(frozen=True)
class ServerWriter:
    """A model behind an address such as ``http://127.0.0.1:8000/v1``; the key is that of OPENAI_API_KEY, if set."""

    address: str
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
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(
                f"--server: {self.address!r} is no address of a server", "give one such as http://127.0.0.1:8000/v1"
            )

    def write(self, prompts: Sequence[str], *, temperature: float, seed: int, max_new_tokens: int) -> list[str]:
        """See ``Writer``.

        Raises:
            UserError: nobody answers, the key or the model is refused, or the answers stay unusable.
        """
        ask = partial(self._ask, temperature=temperature, max_new_tokens=max_new_tokens)
        with ThreadPoolExecutor(self.batch_size) as pool:
            return list(pool.map(ask, prompts, range(seed, seed + len(prompts))))

    def _ask(self, prompt: str, seed: int, *, temperature: float, max_new_tokens: int) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "seed": seed,
            "max_tokens": max_new_tokens,
        }
        for attempt in range(1, self.tries + 1):
            try:
                return _content(self._post(body))
            except _Again as again:
                if attempt == self.tries:
                    raise UserError(
                        f"{self.address}: no usable answer in {self.tries} tries ({again})",
                        "see the server's log; what was answered before is kept, and the same command goes on",
                    ) from again
                seconds = min(self.wait * 2 ** (attempt - 1) if again.wait is None else again.wait, LONGEST_WAIT)
                LOG.warning("warning: %s: %s; again in %.1f s", self.address, again, seconds)
                time.sleep(seconds)
        raise AssertionError("tries is 1 at least")

    def _post(self, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        url = f"{self.address.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.build_opener(_Stay).open(request, timeout=self.timeout) as response:
                return response.read()
        except HTTPError as error:
            with error:
                raise self._refused(error) from error
        except TimeoutError as error:
            raise _Again(f"no answer within {self.timeout:g} s") from error
        except URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _Again(f"no answer within {self.timeout:g} s") from error
            if isinstance(error.reason, ConnectionResetError):
                raise _Again("the connection broke") from error
            raise UserError(
                f"{self.address}: no server answers there ({getattr(error.reason, 'strerror', None) or error.reason})",
                "start it, or correct the address; it usually ends in /v1",
            ) from error
        except (HTTPException, ConnectionError) as error:
            raise _Again(f"the connection broke ({type(error).__name__})") from error

    def _refused(self, error: HTTPError) -> Exception:
        """What a status means: try again, or something that the user can put right."""
        if error.code in RETRIED:
            asked = error.headers.get("Retry-After", "")
            return _Again(f"status {error.code}", float(asked) if asked.isdigit() else None)
        said = " ".join(error.read(2000).decode("utf-8", "replace").split())[:200]
        hints = {
            401: "set OPENAI_API_KEY to a key of this server",
            403: "set OPENAI_API_KEY to a key that may use this model",
            404: f"does the server have a model {self.model!r}, and does the address end in /v1?",
        }
        hint = hints.get(error.code, "the server says why; correct the address, the model or the settings")
        return UserError(f"{self.address}: status {error.code}: {said or error.reason}", hint)


def _content(reply: bytes) -> str:
    """The text of a chat completion; a model that says nothing says the empty text."""
    try:
        return json.loads(reply)["choices"][0]["message"]["content"] or ""
    except (ValueError, LookupError, TypeError) as error:
        shown = " ".join(reply[:80].decode("utf-8", "replace").split())
        raise _Again(f"not a chat completion: {shown!r}") from error
