"""The client against a real server: the request, each kind of trouble, and what the user is told."""

from __future__ import annotations

import logging
import socket
import sys
import time
import traceback

import pytest
from servers import serving

from duet_unlearn.errors import UserError
from duet_unlearn.queries.writers import ServerWriter


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def write(writer: ServerWriter, *prompts: str) -> list[str]:
    return writer.write(prompts, temperature=0.5, seed=7, max_new_tokens=9)


def failure(writer: ServerWriter) -> UserError:
    with pytest.raises(UserError) as caught:
        write(writer, "hello")
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


def test_answers_come_in_the_order_of_the_prompts() -> None:
    with serving(lambda prompt: prompt.upper()) as server:
        prompts = [f"prompt {number}" for number in range(20)]
        assert write(ServerWriter(server.address, "mini"), *prompts) == [prompt.upper() for prompt in prompts]
    assert sorted(server.prompts) == sorted(prompts)
    first = next(body for body in server.asked if body["messages"][0]["content"] == "prompt 0")
    assert first == {
        "path": "/v1/chat/completions",
        "model": "mini",
        "messages": [{"role": "user", "content": "prompt 0"}],
        "temperature": 0.5,
        "seed": 7,
        "max_tokens": 9,
    }
    assert len({body["seed"] for body in server.asked}) == 20
    assert all("Authorization" not in headers for headers in server.headers)


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    with serving(str) as server:
        write(ServerWriter(f"{server.address}/", "mini"), "hello")
    assert server.headers[0]["Authorization"] == "Bearer sesame"
    assert server.asked[0]["path"] == "/v1/chat/completions"


@pytest.mark.parametrize(
    ("troubles", "said"),
    [
        ([429, 500], "status 429"),
        ([b"<html>busy</html>", b'{"choices": []}'], "not a chat completion: '<html>busy</html>'"),
        ([0.6], "no answer within 0.2 s"),
    ],
)
def test_troubles_that_pass_are_waited_for(troubles: list, said: str, caplog: pytest.LogCaptureFixture) -> None:
    count = len(troubles)
    with serving(lambda prompt: "fine") as server, caplog.at_level(logging.WARNING, logger="duet_unlearn"):
        server.troubles = troubles
        assert write(ServerWriter(server.address, "mini", wait=0.01, timeout=0.2), "hello") == ["fine"]
    assert len(server.asked) == count + 1
    assert said in caplog.text


def test_troubles_that_stay_end_after_the_last_try() -> None:
    with serving(str) as server:
        server.troubles = [500] * 9
        error = failure(ServerWriter(server.address, "mini", tries=3, wait=0.01))
    assert len(server.asked) == 3
    assert error.message == f"{server.address}: no usable answer in 3 tries (status 500)"
    assert "the same command goes on" in error.hint


def test_waits_double_and_the_servers_own_word_goes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with serving(str) as server:
        server.troubles = [500, 503, 429, 500]
        write(ServerWriter(server.address, "mini", wait=1.0), "hello")
    assert waits == [1.0, 2.0, 0.0, 8.0]


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "OPENAI_API_KEY"),
        (403, "OPENAI_API_KEY"),
        (404, "'mini'"),
        (400, "the server says why"),
        (302, "the server"),
    ],
)
def test_a_refusal_is_told_at_once_with_what_the_server_said(status: int, hint: str) -> None:
    with serving(str) as server:
        server.troubles = [status]
        error = failure(ServerWriter(server.address, "mini"))
    assert len(server.asked) == 1
    assert f"status {status}: " in error.message
    assert "bad luck" in error.message
    assert hint in error.hint


def test_nobody_there_is_told_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        error = failure(ServerWriter(address, "mini"))
    assert error.message == f"{address}: no server answers there (Connection refused)"


@pytest.mark.parametrize("address", ["file:///etc/passwd", "127.0.0.1:8000", "http://", "http://host:port/v1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="no address of a server"):
        ServerWriter(address, "mini")


def test_ipv6_and_paths_are_addresses() -> None:
    for address in ("http://[::1]:8000/v1", "https://api.openai.com/v1", "http://host/deep/v1/"):
        ServerWriter(address, "mini")


def test_a_model_that_says_nothing_says_the_empty_text() -> None:
    with serving(str) as server:
        server.troubles = [b'{"choices": [{"message": {"content": null}}]}']
        assert write(ServerWriter(server.address, "mini"), "hello") == [""]


@pytest.mark.parametrize("trouble", [401, 400, 500, b"who is sesame-street?", 0.3])
def test_the_key_stands_in_no_log_and_no_traceback(
    trouble: int | bytes | float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the server repeats it, and with everything logged that the client has to say."""
    key = "sesame-street"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        caplog.set_level(logging.DEBUG, logger=name)
    with serving(str) as server:
        server.repeats = key
        server.troubles = [trouble] * 2
        writer = ServerWriter(server.address, "mini", tries=2, wait=0.01, timeout=0.1)
        error = failure(writer)
    assert server.headers[0]["Authorization"] == f"Bearer {key}"
    assert key not in "".join(traceback.format_exception(error))
    assert key not in caplog.text + repr(writer)


@pytest.mark.parametrize("key", ["sesame\nstreet", "s\u00e9same", "sesame\x00"])
def test_a_key_that_no_header_may_hold_is_not_repeated(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"OPENAI_API_KEY": key})
    with serving(str) as server:
        error = failure(ServerWriter(server.address, "mini"))
    assert "OPENAI_API_KEY holds characters" in error.message
    assert key not in "".join(traceback.format_exception(error))
    assert server.asked == []


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    assert failure(ServerWriter("http://127.0.0.1:9/v1", "mini")).hint == (
        "install it with: pip install 'duet-unlearn[server]'"
    )
