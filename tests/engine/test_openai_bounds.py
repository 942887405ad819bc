"""The OpenAI-compatible routes under callers who mean it ill: pictures that unpack, readers who do not read."""

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.engine.hostile import CHAT, bomb, chat_of
from tests.engine.load import running
from tests.engine.service_process import ServiceProcess

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PLACES = 2
LONG = {
    "messages": [{"role": "user", "content": "37+2*4?"}],
    "n": 16,
    "max_tokens": 400,
    "ignore_eos": True,
    "logprobs": True,
    "top_logprobs": 20,
    "stream": True,
}
"""Megabytes of answer: more than the buffers of a connection hold."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    flags = ("--dtype=float32", f"--max-requests={PLACES}", "--max-waiting=0")
    environ = {"COEVO_SEND_TIMEOUT_S": "8", "COEVO_MAX_CLOSED_S": "2"}
    process = ServiceProcess(tmp_path_factory.mktemp("bounds") / "store", *flags, **environ)
    yield process
    process.stop()


def test_pictures_of_gigabytes_are_refused_and_memory_stays_flat(service: ServiceProcess, tmp_path) -> None:
    """Eight of 11 kB each, which unpack to 265 MB each."""
    with service.client() as client:
        client.post(CHAT, json={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
        before, is_over = service.memory_mib, threading.Event()
        peaks: list[int] = []

        def watch() -> None:
            while not is_over.wait(0.05):
                peaks.append(service.memory_mib)

        watcher = threading.Thread(target=watch)
        watcher.start()
        answer = chat_of("image/png", bomb(), 8)(client, tmp_path)
        is_over.set()
        watcher.join()
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too-large"), answer.text
    print(f"{before} MiB before, {max(peaks, default=before)} MiB at most")
    assert max(peaks, default=before) < before + 100


def unread(service: ServiceProcess, body: dict[str, Any]) -> socket.socket:
    """A request whose answer nobody reads."""
    url, data = httpx.URL(service.url), json.dumps(body).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((url.host, url.port))
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    connection.sendall(head.encode() + b"\r\n\r\n" + data)
    return connection


def test_a_reader_who_does_not_read_gives_the_place_back(service: ServiceProcess) -> None:
    with service.client() as client:
        readers = [unread(service, LONG) for _ in range(PLACES)]
        try:
            service.wait_until(lambda: running(client)["coevo_running_requests"] == PLACES)
            # Admission counts every completion: 16 of 400 tokens each, and not one.
            assert running(client)["coevo_running_tokens"] > PLACES * 16 * 400
            reasons: list[str] = []

            def is_told() -> bool:
                client.post("/generate", json={"prompts": [{"prompt": [1]}], "max_tokens": 1})
                answer = client.get("/readyz")
                reasons.append(answer.text)
                return answer.status_code == 503

            service.wait_until(is_told)
            assert "nobody was let in" in reasons[-1]
            assert f"{PLACES} requests are in the engine" in reasons[-1]
            service.wait_until(lambda: not any(running(client).values()))
            assert client.get("/readyz").status_code == 200
            assert client.post(CHAT, json=LONG | {"n": 1, "max_tokens": 2, "stream": False}).status_code == 200
        finally:
            for reader in readers:
                reader.close()


def test_a_reader_who_reads_gets_all_of_a_long_stream(service: ServiceProcess) -> None:
    with service.client() as client, client.stream("POST", CHAT, json=LONG | {"n": 2, "max_tokens": 100}) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > 100
