"""Hub ids where the hub says no, or nothing: two lines with what to download, at once. The hub is a server of ours."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny
import torch
from huggingface_hub import constants

from duet_unlearn.errors import UserError
from duet_unlearn.models.load import load_model, save_model

COMMIT = "0" * 40
ANSWERS = {
    "org/gated": (403, "GatedRepo"),
    "org/absent": (401, "RepoNotFound"),
    "org/adapter": (404, "EntryNotFound"),
    "org/broken": (500, ""),
}
"""Model -> status and X-Error-Code, as the hub gives them."""


class Hub(BaseHTTPRequestHandler):
    """Answers HEAD /ORG/NAME/resolve/main/FILE."""

    def do_HEAD(self) -> None:
        status, code = ANSWERS["/".join(self.path.split("/")[1:3])]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def point_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    point_to(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("http://127.0.0.1:9", monkeypatch)  # the port that nobody listens on


def failure(model_id: str) -> UserError:
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        load_model(model_id)
    assert time.perf_counter() - start < 5
    assert caught.value.message.startswith(f"{model_id}: ")
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


@pytest.mark.usefixtures("hub")
def test_a_gated_model_says_where_to_accept_its_licence() -> None:
    error = failure("org/gated")
    assert "is gated" in error.message
    assert "https://huggingface.co/org/gated" in error.hint
    assert "`hf auth login`" in error.hint
    assert "`hf download org/gated --local-dir DIR`" in error.hint


@pytest.mark.usefixtures("hub")
def test_an_absent_model_is_no_matter_of_the_network() -> None:
    error = failure("org/absent")
    assert "the hub has no such model, or a private one" in error.message
    assert "check the id" in error.hint


@pytest.mark.usefixtures("hub")
def test_a_repository_without_a_model_in_it() -> None:
    error = failure("org/adapter")
    assert "no config.json on the hub" in error.message
    assert "`hf download org/adapter --local-dir DIR`" in error.hint


@pytest.mark.usefixtures("hub")
def test_a_hub_that_is_out_of_order_is_as_good_as_none() -> None:
    assert "the hub cannot be reached" in failure("org/broken").message


@pytest.mark.usefixtures("no_network")
def test_without_a_network_it_says_what_to_download_and_where_to_put_it() -> None:
    error = failure("org/model")
    assert "is not on this machine, and the hub cannot be reached" in error.message
    assert "`hf download org/model --local-dir DIR`" in error.hint
    assert "set model.path to it" in error.hint


@pytest.mark.usefixtures("hub")
def test_offline_by_choice_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = failure("org/gated")
    assert "HF_HUB_OFFLINE is set" in error.message
    assert "`hf download org/gated --local-dir DIR`" in error.hint


@pytest.mark.parametrize("reach", ["hub", "no_network", "offline"])
def test_a_copy_in_the_cache_is_enough(
    cache: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, reach: str
) -> None:
    if reach == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        request.getfixturevalue(reach)
    kept = cache / "models--org--gated"
    save_model(tiny.llama(), tiny.tokenizer(), kept / "snapshots" / COMMIT)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(COMMIT)
    start = time.perf_counter()
    model, tokenizer = load_model("org/gated")
    assert time.perf_counter() - start < 5
    assert tokenizer.chat_template == tiny.TEMPLATE
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), tiny.llama().parameters(), strict=True))


@pytest.mark.usefixtures("no_network")
def test_half_a_copy_in_the_cache_is_two_lines(cache: Path) -> None:
    kept = cache / "models--org--model"
    save_model(tiny.llama(), tiny.tokenizer(), kept / "snapshots" / COMMIT)
    (kept / "snapshots" / COMMIT / "model.safetensors").unlink()
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(COMMIT)
    assert "cannot be loaded" in failure("org/model").message
