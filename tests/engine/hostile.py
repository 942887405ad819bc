"""Requests that no client of ours sends, each with the answer that it must get."""

import base64
import contextlib
import io
import json
import pickle
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from service.media import encode_image, encode_video
from tests.engine.service_process import ServiceProcess
from trainer.miniature.capabilities import CAPABILITIES
from trainer.miniature.question import questions

Ask = Callable[[httpx.Client, Path], httpx.Response]
"""Takes a client, and a folder in which nothing may appear."""

PAD = "<|vision_start|><|image_pad|><|vision_end|>"
SHORT = {"prompt": [1, 2], "completion": [3]}
JSON = {"content-type": "application/json"}
CHAT = "/v1/chat/completions"


def logprobs(**changes: Any) -> Ask:
    return lambda http, _: http.post("/logprobs", json={"sequences": [SHORT | changes]})


def generate(**changes: Any) -> Ask:
    body = {"prompts": [{"prompt": [1, 2]}], "max_tokens": 2} | changes
    return raw("/generate", json.dumps(body).encode())


def chat(**changes: Any) -> Ask:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2} | changes
    return raw(CHAT, json.dumps(body).encode())


def complete(**changes: Any) -> Ask:
    return raw("/v1/completions", json.dumps({"prompt": "hi", "max_tokens": 2} | changes).encode())


def chat_of(kind: str, data: bytes, number: int = 1) -> Ask:
    """A chat about files of a kind, as data URLs."""
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    part = {"type": "image_url", "image_url": {"url": url}}
    return chat(messages=[{"role": "user", "content": [part] * number}])


def schema(**json_schema: Any) -> Ask:
    return chat(structured_outputs={"json": json_schema})


def many_headers(http: httpx.Client, _folder: Path) -> httpx.Response:
    """A megabyte of them. Asked again when the answer is lost, as in `oversized`."""
    for _ in range(20):
        with contextlib.suppress(httpx.TransportError):
            return http.get("/healthz", headers={f"x-{number}": "a" * 8000 for number in range(128)})
    raise AssertionError("never an answer")


def raw(path: str, body: Any, method: str = "POST", **headers: str) -> Ask:
    return lambda http, _: http.request(method, path, content=body, headers=JSON | headers)


def oversized(body: Callable[[], Any]) -> Ask:
    """Asked again when the answer is lost: it is cut off if the body still comes when the connection is closed."""

    def ask(http: httpx.Client, _folder: Path) -> httpx.Response:
        for _ in range(20):
            with contextlib.suppress(httpx.TransportError):
                return http.post("/logprobs", content=body(), headers=JSON)
        raise AssertionError("never an answer")

    return ask


def described(**fields: str) -> Ask:
    return upload({"adapter_config.json": ("x", CONFIG)}, **fields)


def upload(files: dict[str, Any], **fields: str) -> Ask:
    return lambda http, _: http.put("/adapters/p/1", files=files, data={"parent": "0"} | fields)


def png(width: int, height: int, bits: int, colours: int, rows: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def image_of(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds next to nothing."""
    return png(width, height, 8, 2, bytes(1000))


def bomb(side: int = 9_400) -> bytes:
    """A PNG of one bit a pixel, all black: 11 kB that unpack to 265 MB of RGB."""
    return png(side, side, 1, 0, bytes((1 + -(-side // 8)) * side))


def encoded(format: str) -> bytes:
    """A whole small image in a format of Pillow's."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, format)
    return file.getvalue()


def half_of(kind: str) -> bytes:
    frames = next(questions(CAPABILITIES[kind], "test", 0, 1)).scene.render()
    whole = encode_image(frames[0]) if kind == "image" else encode_video(frames, 2)
    return whole[: len(whole) // 2]


def shown(kind: str, data: bytes) -> Ask:
    content = [{"type": kind}]
    prompt = {"messages": [{"role": "user", "content": content}]}
    return logprobs(**{"prompt": prompt, f"{kind}s": [base64.b64encode(data).decode()]})


class Opening:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self._path), "w")


def pickled(http: httpx.Client, folder: Path) -> httpx.Response:
    weights = pickle.dumps(Opening(folder / "owned"))
    return upload({"adapter_model.safetensors": ("x", weights), "adapter_config.json": ("x", CONFIG)})(http, folder)


def enormous_header(http: httpx.Client, folder: Path) -> httpx.Response:
    """A file of weights that is all header, of a quarter million tensors without a number."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{number}": empty for number in range(250_000)}).encode()
    weights = struct.pack("<Q", len(header)) + header
    files = {"adapter_model.safetensors": ("x", weights), "adapter_config.json": ("x", CONFIG)}
    return upload(files)(http, folder)


def message_of(url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


ASK = {"sequences": [SHORT]}
SEQUENCE_OF_HALF = {"sequences": [{"prompt": [1], "completion": "\ud800"}]}
IMAGE_URL = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]
CONFIG = b'{"r": 8, "lora_alpha": 8, "peft_type": "LORA"}'
HOSTILE = [
    pytest.param(request, status, kind, id=name)
    for name, request, status, kind in [
        ("body over the limit", oversized(lambda: bytes(5_000_000)), 413, "too-large"),
        ("body over the limit, unstated", oversized(lambda: (bytes(10**5) for _ in range(50))), 413, "too-large"),
        ("image of 60000 x 60000", shown("image", image_of(60000, 60000)), 413, "too-large"),
        ("image of 60000 x 60000, put", raw("/media", image_of(60000, 60000), "PUT"), 413, "too-large"),
        ("half an image", shown("image", half_of("image")), 422, "damaged-media"),
        ("half a video", shown("video", half_of("video")), 422, "damaged-media"),
        ("half a video, put", raw("/media", half_of("video"), "PUT"), 422, "damaged-media"),
        ("an empty file", raw("/media", b"", "PUT"), 415, "unsupported-media"),
        ("an image without its mark", logprobs(images=[base64.b64encode(image_of(9, 9)).decode()]), 422, "invalid"),
        ("a pickle", pickled, 422, "invalid"),
        ("a part named as a path", upload({"../../x": ("x", b"x")}), 422, "invalid"),
        ("a file named as a path", upload({"adapter_config.json": ("../../x", CONFIG)}), 422, "invalid"),
        ("meta of deep lists", described(meta="[" * 60000), 422, "invalid"),
        ("meta with NaN", described(meta='{"a": NaN}'), 422, "invalid"),
        ("a parent of 5000 digits", described(parent="9" * 5000), 422, "invalid"),
        ("an adapter that is a path", lambda http, _: http.post("/logprobs?adapter=../x", json=ASK), 422, "invalid"),
        ("an adapter with NUL", lambda http, _: http.post("/logprobs?adapter=a%00", json=ASK), 422, "invalid"),
        ("65 adapters", lambda http, _: http.post("/logprobs?" + "&adapter=base" * 65, json=ASK), 422, "invalid"),
        ("a fork of a path", raw("/adapters/x", b'{"from": "../../etc@1"}'), 422, "invalid"),
        ("an id of 400 digits", logprobs(prompt=[10**400]), 422, "invalid"),
        ("an id of 5000 digits", raw("/logprobs", b'{"sequences": [' + b"9" * 5000 + b"]}"), 422, "invalid"),
        ("a negative id", logprobs(completion=[-1]), 422, "invalid"),
        ("an unclosed depth", raw("/logprobs", b"[" * 10**5), 400, "bad-request"),
        ("a closed depth", raw("/logprobs", b"[" * 10**5 + b"]" * 10**5), 400, "bad-request"),
        ("an unclosed depth in chat", raw("/v1/chat/completions", b"[" * 10**5), 400, "bad-request"),
        ("NaN", generate(top_p=float("nan")), 422, "invalid"),
        ("infinite temperature", generate(temperature=float("inf")), 422, "invalid"),
        ("17000 completions", generate(n=17000), 422, "invalid"),
        ("10^30 completions", generate(n=10**30), 422, "invalid"),
        ("a seed of 30 digits", generate(prompts=[{"prompt": [1], "seed": 10**30}]), 422, "invalid"),
        ("an empty stop", generate(stop=[""]), 422, "invalid"),
        ("an unknown id to continue", generate(prompts=[{"prompt": [10**6]}]), 422, "invalid"),
        ("10^5 empty sequences", raw("/logprobs", b'{"sequences": [' + b"{}," * 10**5 + b"{}]}"), 422, "invalid"),
        ("half a surrogate", raw("/logprobs", json.dumps(SEQUENCE_OF_HALF).encode()), 422, "invalid"),
        ("not UTF-8", raw("/logprobs", b'{"\xff'), 400, "bad-request"),
        ("gzip", raw("/logprobs", b"\x1f\x8b" + bytes(100), **{"content-encoding": "gzip"}), 400, "bad-request"),
        ("chat of words for numbers", chat(max_tokens="x"), 422, "invalid"),
        ("chat of lists for numbers", chat(max_tokens=[1]), 422, "invalid"),
        ("chat with a URL", chat(messages=[{"role": "user", "content": IMAGE_URL}]), 422, "media-reference"),
        ("chat with a path for a model", chat(model="../../etc"), 422, "invalid"),
        ("greedy completions that are all the same", generate(n=4, temperature=0), 422, "invalid"),
        ("a megabyte of headers", many_headers, 431, "too-large"),
        ("a token above the doubles", described(token="9" * 16), 422, "invalid"),
        ("a token of 17 digits", described(token="9" * 17), 422, "invalid"),
        ("a header of 250000 tensors", enormous_header, 413, "too-large"),
        ("chat with 10^6 depth", raw(CHAT, b'{"messages":' + b"[" * 10**6), 400, "bad-request"),
        ("chat that is not UTF-8", raw(CHAT, b'{"\xff'), 400, "bad-request"),
        ("chat in gzip", raw(CHAT, b"\x1f\x8b" + bytes(100), **{"content-encoding": "gzip"}), 400, "bad-request"),
        ("chat of half a surrogate", chat(messages=[{"role": "user", "content": "\ud800"}]), 422, "invalid"),
        ("chat with a NUL for a model", chat(model="a\x00"), 422, "invalid"),
        ("chat with 10^5 messages", chat(messages=[{"role": "user", "content": ""}] * 10**5), 422, "invalid"),
        ("chat with an id of 5000 digits", raw(CHAT, b'{"n": ' + b"9" * 5000 + b"}"), 400, "bad-request"),
        ("chat with 10^30 completions", chat(n=10**30), 422, "invalid"),
        ("chat with fewer than no tokens", chat(max_tokens=-(10**6)), 422, "invalid"),
        ("chat with a huge top_k", chat(top_k=2**70), 422, "invalid"),
        ("chat with a seed of 30 digits", chat(seed=10**30), 422, "invalid"),
        ("chat with NaN", chat(top_p=float("nan")), 422, "invalid"),
        ("chat with an empty stop", chat(stop=[""]), 422, "invalid"),
        ("chat with tensors", chat(prompt_embeds="x"), 422, "invalid"),
        ("chat with a template", chat(chat_template="{{ 1 }}"), 422, "invalid"),
        ("chat with the processor's arguments", chat(mm_processor_kwargs={}), 422, "invalid"),
        ("chat with too many likeliest tokens", chat(logprobs=True, top_logprobs=200), 422, "invalid"),
        ("chat with a file's URL", chat(messages=message_of("file:///etc/passwd")), 422, "media-reference"),
        ("chat with a path", chat(messages=message_of("/etc/passwd")), 422, "media-reference"),
        ("chat with a video", chat(messages=message_of("data:video/mp4;base64,AAAA")), 422, "media-reference"),
        ("chat with an unknown id", chat(messages=message_of("sha256:" + "0" * 64)), 404, "unknown-media"),
        ("chat with an image of 60000 x 60000", chat_of("image/png", image_of(60000, 60000)), 413, "too-large"),
        ("chat with an image that unpacks to 265 MB", chat_of("image/png", bomb()), 413, "too-large"),
        ("chat with half an image", chat_of("image/png", half_of("image")), 422, "damaged-media"),
        ("chat with a GIF", chat_of("image/gif", encoded("GIF")), 415, "unsupported-media"),
        ("chat with a TIFF", chat_of("image/png", encoded("TIFF")), 415, "unsupported-media"),
        ("chat with an ICNS", chat_of("image/png", encoded("ICNS")), 415, "unsupported-media"),
        ("chat with a pad of an image", chat(messages=[{"role": "user", "content": PAD}]), 422, "invalid"),
        ("chat with a schema that is not there", chat(response_format={"type": "json_schema"}), 422, "invalid"),
        ("completions of a pad of a video", complete(prompt="<|video_pad|>"), 422, "invalid"),
        ("chat with nine images", chat_of("image/png", encoded("PNG"), 9), 422, "invalid"),
        ("a schema that is itself", schema(**{"$ref": "#"}), 422, "invalid"),
        ("a schema of itself", schema(**{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}), 422, "invalid"),
        ("a schema of a depth", schema(**json.loads('{"items":' * 40 + "{}" + "}" * 40)), 422, "invalid"),
        ("a schema of 10^5 properties", schema(properties={f"p{i}": {} for i in range(10**5)}), 422, "invalid"),
        ("10^5 choices", chat(structured_outputs={"choice": [f"{i}" for i in range(10**5)]}), 422, "invalid"),
        ("a grammar of a megabyte", chat(structured_outputs={"grammar": "root ::= " + '"a" ' * 2**18}), 422, "invalid"),
        ("a pattern of a megabyte", chat(structured_outputs={"regex": "(a|b)?" * 2**17}), 422, "invalid"),
        ("completions of an unknown id", complete(prompt=[10**6]), 422, "invalid"),
        ("completions of an id of 400 digits", complete(prompt=[10**400]), 422, "invalid"),
        ("completions of 10^5 prompts", complete(prompt=["a"] * 10**5), 422, "invalid"),
        ("completions with fewer than no tokens", complete(max_tokens=-1), 422, "invalid"),
        ("completions of nothing", complete(prompt=[]), 422, "invalid"),
        ("completions by beams", complete(use_beam_search=True, n=64), 422, "invalid"),
    ]
]
PATHS = [
    "GET /adapters/%2e%2e/1",
    "GET /adapters/../../etc/passwd",
    "GET /adapters/image%2f../1",
    "GET /adapters/p/1/%2e%2e%2fmanifest.json",
    "GET /adapters/p/1/..%2f..%2f..%2f..%2fetc%2fpasswd",
    "GET /adapters/p/99999999999999999999",
    "GET /adapters/%c3%28/1",
    f"GET /adapters/{'a' * 10_000}",
    "PUT /adapters/..%2f..%2fetc/1",
    "PUT /adapters/a%00b/1",
    "PUT /adapters/image%5c..%5cx/1",
    "DELETE /adapters/%2e%2e/1",
    "GET //etc/passwd",
]


def _connection(service: ServiceProcess, head: str, length: int) -> socket.socket:
    url = httpx.URL(service.url)
    connection = socket.create_connection((url.host, url.port), timeout=30)
    lines = [f"{head} HTTP/1.1", "host: localhost", "connection: close", f"content-length: {length}"]
    lines += [f"{name}: {value}" for name, value in service.headers.items()]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def bare_request(service: ServiceProcess, head: str) -> bytes:
    """The whole answer to a request whose path no client has tidied."""
    with _connection(service, head, 0) as connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


def begun_body(service: ServiceProcess) -> socket.socket:
    """A file that is promised, begun, and not gone on with."""
    connection = _connection(service, "PUT /media", 10**6)
    connection.sendall(image_of(9, 9)[:20])
    return connection
