"""A real server on a real socket that answers as an OpenAI-compatible one does, well or badly."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Trouble = int | bytes | float | None
"""What a request meets: a status, a body that is no answer, seconds of silence, or nothing bad."""


@dataclass
class Server:
    """Where it is, what it was asked, and the troubles that the next requests will meet."""

    address: str
    says: Callable[[str], str]
    troubles: list[Trouble] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Message] = field(default_factory=list)
    repeats: str = "bad luck"
    """What it says of a status that is an error."""

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.asked]


@contextmanager
def serving(says: Callable[[str], str]) -> Iterator[Server]:
    """A server that says to a prompt what `says` says, for the length of a test."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append(body | {"path": self.path})
            server.headers.append(self.headers)  # any case is the same
            trouble = server.troubles.pop(0) if server.troubles else None
            if isinstance(trouble, float):
                time.sleep(trouble)
            if isinstance(trouble, int):
                self._send(trouble, json.dumps({"error": {"message": server.repeats}}).encode())
            elif isinstance(trouble, bytes):
                self._send(200, trouble)
            else:
                text = server.says(body["messages"][0]["content"])
                self._send(200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode())

        def _send(self, status: int, body: bytes) -> None:
            try:
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                if status == 429:
                    self.send_header("Retry-After", "0")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except ConnectionError:
                pass  # the client has lost its patience

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1", says)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
