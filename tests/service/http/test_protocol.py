"""uvicorn with bounded heads, asked over a socket."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn

from service.http.protocol import bounded

LIMIT = 1000


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    async def app(scope, receive, send) -> None:
        body, more = b"", True
        while more:  # to its end: what is not read when the connection closes resets it
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, http=bounded(LIMIT), lifespan="off", log_config=None))
        thread = threading.Thread(target=asyncio.run, args=[server.serve(sockets=[listener])])
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


def answer(port: int, *pieces: bytes) -> bytes:
    """Everything that comes back, to the connection's end."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return b"".join(iter(lambda: connection.recv(65536), b""))


HEAD = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"


def test_a_head_that_does_not_end_is_cut_off(port: int) -> None:
    for filler in (b"a: " + b"b" * 2000, b"a: b\r\n" * 400):
        refused = answer(port, HEAD + filler)
        assert refused.startswith(b"HTTP/1.1 431 ")
        assert b"x-problem-type: too-large" in refused
    assert answer(port, b"GET /" + b"a" * 2000).startswith(b"HTTP/1.1 431 ")


def test_a_head_in_pieces_and_a_long_body_are_fine(port: int) -> None:
    body = b"c" * 5000
    pieces = [HEAD[:10], HEAD[10:], b"content-length: 5000\r\n", b"\r\n" + body[:3000], body[3000:]]
    assert answer(port, *pieces).startswith(b"HTTP/1.1 200 ")
