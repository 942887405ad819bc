"""The client against a service that answers as each test wants: tries, deadlines, uploads, refusals."""

import asyncio
import hashlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, StreamingResponse

from adapters.errors import UserError
from adapters.manifest import WEIGHTS, FileEntry, Manifest, adapter_digest
from clients.client import AsyncClient, RefusedError, ServiceError, from_environment, media_id
from clients.retries import RetryDeadline, error_of
from service.http.auth import BodyLimit
from service.http.problems import ProblemError, install
from service.schemas import (
    SAFETENSORS,
    AdapterScores,
    AdaptersResponse,
    BaseInfo,
    Completion,
    EngineInfo,
    Generated,
    GenerateRequest,
    GenerateResponse,
    LimitsInfo,
    LogprobsRequest,
    LogprobsResponse,
    MediaInfo,
    Prompt,
    RunBranch,
    RunInfo,
    RunsResponse,
    ScoredSequence,
    Sequence,
    StepRollouts,
)
from service.wire import encode_generated, encode_logprobs

PATIENCE_S = 60.0
REQUEST = LogprobsRequest(sequences=[Sequence(prompt=[1, 2], completion=[3])])


def scored(row: Sequence) -> ScoredSequence:
    assert isinstance(row.prompt, list)
    assert isinstance(row.completion, list)
    return ScoredSequence(
        token_ids=row.completion, logprobs=[-0.5] * len(row.completion), prompt_tokens=len(row.prompt)
    )


def scores(names, request=REQUEST):
    sequences = [scored(row) for row in request.sequences]
    return LogprobsResponse(
        adapters=[AdapterScores(adapter=name, revision=3, digest="d", sequences=sequences) for name in names]
    )


def binary(body):
    return Response(body, media_type=SAFETENSORS)


@pytest.fixture
def app():
    """A service without routes: every test adds its own. `seen` is what they note."""
    app = FastAPI()
    install(app)
    app.state.seen = []
    return app


def listening(port=0):
    listener = socket.create_server(("127.0.0.1", port))
    return listener, listener.getsockname()[1]


@contextmanager
def serving(app, port=0):
    listener, port = listening(port)
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def server():
    """One server for all tests; starting and stopping one takes longer than most of them."""
    current = {}

    async def answer(scope, receive, send):
        await current["app"](scope, receive, send)

    with serving(answer) as url:
        yield url, current


@pytest.fixture
def url(app, server):
    url, current = server
    current["app"] = app
    return url


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ask(url: str, method: str, *arguments: Any, options: dict[str, Any] | None = None, **keywords: Any) -> Any:
    """Calls a method of a fresh client."""

    async def scenario() -> Any:
        async with AsyncClient(url, **{"timeout_s": PATIENCE_S, **(options or {})}) as client:
            return await getattr(client, method)(*arguments, **keywords)

    return asyncio.run(scenario())


@pytest.fixture
def retried():
    """Set when a client has begun to pause before another try."""
    event = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record):
            event.set()

    logger, handler = logging.getLogger("clients.retries"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield event
    logger.removeHandler(handler)
    logger.setLevel(level)


@contextmanager
def in_thread(function, *arguments, **keywords):
    """Runs beside the block; `result()` gives what came of it."""
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(function(*arguments, **keywords)))
    thread.start()

    def result():
        thread.join(PATIENCE_S)
        return outcome[0]

    yield result
    thread.join(PATIENCE_S)


# ---- what is asked and answered ----


def test_scores_travel_as_safetensors(app, url):
    @app.post("/logprobs")
    async def logprobs(request: Request):
        app.state.seen.append((request.headers["accept"], request.query_params.getlist("adapter")))
        return binary(encode_logprobs(scores(["image@17", "base"])))

    assert ask(url, "logprobs", ["image@17", "base"], REQUEST) == scores(["image@17", "base"])
    [(accept, adapters)] = app.state.seen
    assert accept.startswith(SAFETENSORS)
    assert adapters == ["image@17", "base"]


def test_scores_as_json_are_read_too(app, url):
    @app.post("/logprobs")
    async def logprobs(request: LogprobsRequest):
        return scores(["base"], request)

    assert ask(url, "logprobs", ["base"], REQUEST) == scores(["base"])


def generated(request):
    prompts = [
        Generated(
            prompt_token_ids=prompt.prompt,
            completions=[Completion(token_ids=[9], logprobs=[-1.0], finish_reason="stop")] * request.n,
        )
        for prompt in request.prompts
    ]
    return GenerateResponse(adapter="text", revision=1, digest="d", prompts=prompts)


def test_generation_asks_for_every_prompt_alone_and_keeps_the_order(app, url):
    @app.post("/generate")
    async def generate(request: GenerateRequest, adapter: str):
        app.state.seen.append(len(request.prompts))
        return binary(encode_generated(generated(request)))

    request = GenerateRequest(prompts=[Prompt(prompt=[number], seed=number) for number in range(9)], n=3)
    answers = ask(url, "generate", "text@1", request)
    assert app.state.seen == [1] * 9
    assert [answer.prompts[0].prompt_token_ids for answer in answers] == [[number] for number in range(9)]
    assert all(len(answer.prompts[0].completions) == 3 for answer in answers)


def test_requests_go_together_but_no_more_than_the_limit(app, url):
    inside, most = 0, 0
    full = asyncio.Event()

    @app.post("/generate")
    async def generate(request: GenerateRequest):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if inside == 3:
            full.set()
        await full.wait()
        inside -= 1
        return binary(encode_generated(generated(request)))

    async def scenario():
        async with AsyncClient(url, timeout_s=PATIENCE_S, max_in_flight=3) as client:
            return await client.generate("text", GenerateRequest(prompts=[Prompt(prompt=[1])] * 12))

    assert len(asyncio.run(scenario())) == 12
    assert most == 3


def test_a_calls_time_begins_when_it_gets_its_place(app, url):
    """Twelve calls of a third of their time, three at once: the last begin when the first time is over."""
    time_s = 3.0

    @app.post("/generate")
    async def generate(request: GenerateRequest):
        await asyncio.sleep(time_s / 3)
        return binary(encode_generated(generated(request)))

    async def scenario():
        async with AsyncClient(url, timeout_s=time_s, max_in_flight=3) as client:
            return await client.generate("text", GenerateRequest(prompts=[Prompt(prompt=[1])] * 12))

    assert len(asyncio.run(scenario())) == 12


def test_the_engines_calls_have_a_time_of_their_own(app, url):
    @app.post("/logprobs")
    async def logprobs(request: Request):
        await asyncio.sleep(0.6)
        return binary(encode_logprobs(scores(["base"])))

    @app.get("/adapters")
    async def adapters(request: Request):
        await request.body()
        await request.receive()  # until the client has gone

    options = {"timeout_s": 0.3, "engine_s": PATIENCE_S}
    assert ask(url, "logprobs", ["base"], REQUEST, options=options) == scores(["base"])
    with pytest.raises(ServiceError, match=r"no answer within 0\.3 s"):
        ask(url, "adapters", options=options)


def test_what_is_quick_does_not_wait_for_what_is_long(app, url):
    release = asyncio.Event()

    @app.post("/generate")
    async def generate(request: GenerateRequest):
        await release.wait()
        return binary(encode_generated(generated(request)))

    @app.get("/runs")
    async def runs():
        release.set()
        return RunsResponse(runs=[])

    async def scenario():
        async with AsyncClient(url, timeout_s=PATIENCE_S, max_in_flight=1) as client:
            request = GenerateRequest(prompts=[Prompt(prompt=[1])] * 3)
            return await asyncio.gather(client.generate("text", request), client.runs())

    answers, listed = asyncio.run(scenario())
    assert (len(answers), listed) == (3, [])


def test_prompts_with_short_answers_travel_together(app, url):
    @app.post("/generate")
    async def generate(request: GenerateRequest):
        app.state.seen.append([prompt.seed for prompt in request.prompts])
        return binary(encode_generated(generated(request)))

    def sizes(**settings):
        app.state.seen.clear()
        prompts = [Prompt(prompt=[number], seed=number) for number in range(20)]
        answers = ask(url, "generate", "text", GenerateRequest(prompts=prompts, **settings))
        assert all(len(answer.prompts) == 1 for answer in answers)
        assert [answer.prompts[0].prompt_token_ids for answer in answers] == [[number] for number in range(20)]
        return sorted(len(seeds) for seeds in app.state.seen)

    assert sizes() == [1] * 20
    assert sizes(n=8, max_tokens=48) == [5] * 4
    assert sizes(max_tokens=48) == [4, 16]
    assert sizes(max_tokens=4096) == [1] * 20


def test_when_one_prompt_fails_the_rest_is_called_off(app, url):
    @app.post("/generate")
    async def generate(request: GenerateRequest, http: Request):
        if request.prompts[0].prompt == [1]:
            while len(app.state.seen) < 1:
                await asyncio.sleep(0.001)
            raise ProblemError("invalid", 422, "too long")
        app.state.seen.append("waits")
        await http.receive()  # until the client has gone
        app.state.seen.append("gone")

    async def scenario():
        async with AsyncClient(url, timeout_s=PATIENCE_S) as client:
            await client.generate("text", GenerateRequest(prompts=[Prompt(prompt=[1]), Prompt(prompt=[2])]))

    with pytest.raises(RefusedError, match="too long"):
        asyncio.run(scenario())
    wait_until(lambda: app.state.seen == ["waits", "gone"])


BASE = f"sha256:{'b' * 64}"


def revision(files, **more):
    """As the service answers it."""
    entries = {
        name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)) for name, data in files.items()
    }
    return Manifest(
        branch="text",
        revision=4,
        parent=3,
        base=BASE,
        digest=adapter_digest(entries),
        files=entries,
        created=datetime.now(UTC),
        **more,
    )


FILES = {"adapter_model.safetensors": os.urandom(300_000), "adapter_config.json": b"{}", "optimizer.safetensors": b"m"}


@pytest.fixture
def adapter(tmp_path):
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "notes.txt").write_bytes(b"not sent")
    return tmp_path


def test_a_publish_sends_the_files_and_again_after_a_503(app, url, adapter):
    @app.put("/adapters/{branch}/{number}")
    async def publish(branch: str, number: int, request: Request):
        async with request.form(max_part_size=2**30) as form:
            parts = {name: part if isinstance(part, str) else await part.read() for name, part in form.items()}
        app.state.seen.append((branch, number, parts))
        if len(app.state.seen) == 1:
            raise ProblemError("not-ready", 503, "starting")
        return revision(FILES)

    info = ask(url, "publish", "text", 4, adapter, parent=3, token=7, meta={"seed": 1})
    assert info.files.keys() == FILES.keys()
    expected = {**FILES, "parent": "3", "token": "7", "meta": '{"seed": 1}'}
    assert app.state.seen == [("text", 4, expected)] * 2


def test_a_publish_that_stored_other_bytes_is_an_error(app, url, adapter):
    @app.put("/adapters/{branch}/{number}")
    async def publish(request: Request):
        await request.body()
        return revision({**FILES, "adapter_config.json": b"other"})

    with pytest.raises(ServiceError, match=r"it stored sha256:\w+, sent was"):
        ask(url, "publish", "text", 4, adapter, parent=3)


def test_a_publish_without_its_files_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match=r"no adapter_config\.json and no adapter_model\.safetensors"):
        ask("http://127.0.0.1:1", "publish", "text", 4, tmp_path, parent=3)


def test_a_refusal_of_a_large_upload_reaches_the_client(app, adapter):
    (adapter / "optimizer.safetensors").write_bytes(bytes(30 * 2**20))

    @app.put("/adapters/{branch}/{number}")
    async def publish(request: Request):
        await request.body()

    with serving(BodyLimit(app, 1000, {})) as url, pytest.raises(RefusedError) as caught:
        ask(url, "publish", "text", 4, adapter, parent=3)
    assert (caught.value.type, caught.value.status) == ("too-large", 413)


def test_fork_retire_and_describe(app, url):
    @app.post("/adapters/{branch}")
    async def fork(branch: str, request: Request):
        app.state.seen.append((branch, await request.json()))
        return revision(FILES, meta={"a": 1})

    @app.delete("/adapters/{branch}/{number}")
    async def retire(branch: str, number: int):
        app.state.seen.append((branch, number))
        return Response(status_code=204)

    @app.get("/adapters/{branch}/{number}")
    async def describe(branch: str, number: int):
        return revision(FILES)

    assert ask(url, "fork", "image", "text@3").meta == {"a": 1}
    assert ask(url, "retire", "text", 2) is None
    assert ask(url, "describe", "text", 4).parent == 3
    assert app.state.seen == [("image", {"from": "text@3"}), ("text", 2)]


def file_service(app, answer):
    """One file, which every test answers in its own way."""

    @app.get("/adapters/text/4")
    async def describe():
        return revision(FILES)

    @app.get("/adapters/text/4/{name}")
    async def file(name: str):
        app.state.seen.append(name)
        return answer(name)


def test_a_download_is_the_file(app, url, tmp_path):
    file_service(app, lambda name: Response(FILES[name]))
    to = ask(url, "download", "text", 4, WEIGHTS, tmp_path / "weights")
    assert to.read_bytes() == FILES[WEIGHTS]


def test_a_download_of_other_bytes_leaves_nothing(app, url, tmp_path):
    file_service(app, lambda name: Response(FILES[name][:-1] + bytes([FILES[name][-1] ^ 1])))
    with pytest.raises(ServiceError, match="not the hash"):
        ask(url, "download", "text", 4, WEIGHTS, tmp_path / "weights")
    assert [*tmp_path.iterdir()] == []


def test_a_file_that_a_revision_does_not_have_is_not_asked_for(app, url, tmp_path):
    file_service(app, lambda name: Response())
    with pytest.raises(UserError, match=r"text@4 has no notes\.txt"):
        ask(url, "download", "text", 4, "notes.txt", tmp_path / "notes")
    assert app.state.seen == []


def test_a_download_that_breaks_off_begins_again(app, url, tmp_path):
    def answer(name):
        async def pieces():
            yield FILES[name][:50_000]
            if len(app.state.seen) > 1:  # else the server closes the connection, the answer being too short
                yield FILES[name][50_000:]

        return StreamingResponse(pieces(), headers={"content-length": str(len(FILES[name]))})

    file_service(app, answer)
    assert ask(url, "download", "text", 4, WEIGHTS, tmp_path / "weights").read_bytes() == FILES[WEIGHTS]
    assert app.state.seen == [WEIGHTS] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_record_is_streamed_and_again_after_a_503(app, url, tmp_path):
    path = tmp_path / "record"
    path.write_bytes(os.urandom(3 * 2**20))

    @app.put("/runs/{run}/rollouts/{branch}/{step}")
    async def put(run: str, branch: str, step: int, keep: int, request: Request):
        size = request.headers["content-length"]
        app.state.seen.append((run, branch, step, keep, size, await request.body() == path.read_bytes()))
        if len(app.state.seen) == 1:
            raise ProblemError("not-ready", 503, "starting")
        return {"removed": [1]}

    assert ask(url, "put_rollouts", "first", "image", 3, path, keep=2) == [1]
    assert app.state.seen == [("first", "image", 3, 2, str(3 * 2**20), True)] * 2


def test_a_page_of_rollouts_is_asked_for_by_its_place(app, url):
    page = StepRollouts(run="first", branch="image", step=3, parts=[], metrics={"loss": 0.5})

    @app.get("/runs/{run}/rollouts/{branch}/{step}")
    async def get(run: str, branch: str, step: int, request: Request):
        app.state.seen.append(dict(request.query_params))
        return page

    @app.get("/runs/{run}/rollouts")
    async def index(run: str):
        return {"branches": {"image": [3, 4]}}

    assert ask(url, "rollouts", "first", "image", 3) == page
    assert ask(url, "rollouts", "first", "image", 3, part="native", first=8, count=4) == page
    assert app.state.seen == [{"first": "0", "count": "16"}, {"first": "8", "count": "4", "part": "native"}]
    assert ask(url, "recorded_steps", "first") == {"image": [3, 4]}


def test_runs_are_listed(app, url):
    now = datetime.now(UTC)
    branches = {"image": RunBranch(head=3, last=9, reward=0.5)}
    info = RunInfo(
        id="first", name="mutual", state="running", branches=branches, num_events=7, started=now, updated=now
    )

    @app.get("/runs")
    async def runs():
        return RunsResponse(runs=[info])

    assert ask(url, "runs") == [info]


# ---- media ----


def media_service(app, keeps=True):
    stored = {}

    @app.put("/media")
    async def put(request: Request):
        data = await request.body()
        app.state.seen.append("put")
        if keeps:
            stored[media_id(data)] = data
        return {"id": media_id(data)}

    @app.post("/logprobs")
    async def logprobs(request: LogprobsRequest):
        app.state.seen.append("ask")
        gone = [id for row in request.sequences for id in row.images if id not in stored]
        if gone:
            raise ProblemError("unknown-media", 404, "unknown", ids=gone)
        return binary(encode_logprobs(scores(["base"], request)))


def with_images(*images):
    ids = [media_id(image) for image in images]
    return LogprobsRequest(sequences=[Sequence(prompt=[1], completion=[2], images=ids)])


def test_unknown_media_are_uploaded_and_the_request_repeated(app, url):
    media_service(app)
    images = {media_id(data): data for data in (b"one", b"two")}
    ask(url, "logprobs", ["base"], with_images(b"one", b"two"), media=images)
    assert app.state.seen == ["ask", "put", "put", "ask"]


def test_media_that_the_client_does_not_have_are_not_found(app, url):
    media_service(app)
    with pytest.raises(RefusedError) as caught:
        ask(url, "logprobs", ["base"], with_images(b"one"))
    assert caught.value.type == "unknown-media"
    assert app.state.seen == ["ask"]


def test_a_service_that_forgets_at_once_is_given_up_on(app, url):
    media_service(app, keeps=False)
    with pytest.raises(RefusedError, match="unknown-media"):
        ask(url, "logprobs", ["base"], with_images(b"one"), media={media_id(b"one"): b"one"})
    assert app.state.seen == ["ask", "put"] * 3 + ["ask"]


# ---- who answers ----


MEDIA = MediaInfo(
    max_images=8,
    max_videos=1,
    image_min_pixels=1024,
    image_max_pixels=4096,
    fps=2.0,
    min_frames=4,
    max_frames=128,
    video_min_pixels=1024,
    video_max_pixels=4096,
)


def described(digest):
    return AdaptersResponse(
        base=BaseInfo(name="miniature", digest=digest),
        branches={},
        limits=LimitsInfo(rank=8, max_model_len=64, top_k=5, body_bytes=1, request_timeout_s=600),
        media=MEDIA,
        engine=EngineInfo(version="0", dtype="float32"),
    )


def test_a_client_of_one_base_asks_nothing_of_another(app, url):
    @app.get("/adapters")
    async def adapters():
        app.state.seen.append("adapters")
        return described("sha256:a")

    @app.post("/logprobs")
    async def logprobs():
        app.state.seen.append("logprobs")
        return binary(encode_logprobs(scores(["base"])))

    with pytest.raises(RefusedError, match=r"miniature \(sha256:a\), wanted is sha256:b") as caught:
        ask(url, "logprobs", ["base"], REQUEST, options={"base": "sha256:b"})
    assert caught.value.type == "other-base"
    assert app.state.seen == ["adapters"]
    ask(url, "logprobs", ["base"], REQUEST, options={"base": "sha256:a"})
    assert app.state.seen == ["adapters", "adapters", "logprobs"]
    assert ask(url, "adapters", options={"base": "sha256:b"}).base.digest == "sha256:a"


def test_the_key_is_sent(app, url):
    @app.get("/adapters")
    async def adapters(request: Request):
        if request.headers.get("authorization") != "Bearer sesame":
            raise ProblemError("unauthorised", 401, "send the key")
        return described("d")

    assert ask(url, "adapters", options={"api_key": "sesame"}).base.name == "miniature"
    with pytest.raises(RefusedError, match=r"the service wants another key; set COEVO_API_KEY"):
        ask(url, "adapters")


def test_not_ready_is_an_answer_and_a_refusal_is_an_error(app, url):
    @app.get("/readyz")
    async def readyz():
        raise ProblemError(*(("not-ready", 503, "starting") if not app.state.seen else ("unauthorised", 401, "a key")))

    assert ask(url, "ready") is False
    app.state.seen.append(1)
    with pytest.raises(RefusedError, match="another key"):
        ask(url, "ready")
    with pytest.raises(RefusedError, match="another key"):
        ask(url, "wait_until_ready", PATIENCE_S)


def test_a_key_that_no_header_can_hold_is_not_shown():
    with pytest.raises(RefusedError) as caught:
        ask("http://127.0.0.1:1", "adapters", options={"api_key": "sesame\nopen"})
    assert "sesame" not in str(caught.value)


def test_an_address_without_a_scheme_is_the_users_error():
    with pytest.raises(RefusedError, match="write http://HOST:PORT"):
        ask("localhost", "adapters")


def test_the_environment_tells_where_the_service_is():
    assert from_environment({}) == {"url": "http://127.0.0.1:8000", "api_key": None}
    environ = {"COEVO_SERVICE_URL": "http://gpu:1", "COEVO_API_KEY": "k"}
    assert from_environment(environ) == {"url": "http://gpu:1", "api_key": "k"}


# ---- what goes wrong ----


def test_a_service_that_comes_up_late_is_waited_for(app, retried):
    @app.get("/readyz")
    async def readyz():
        return "ok"

    listener, port = listening()
    listener.close()
    url = f"http://127.0.0.1:{port}"
    assert ask(url, "ready") is False
    with in_thread(ask, url, "wait_until_ready", PATIENCE_S) as result:
        assert retried.wait(PATIENCE_S)
        with serving(app, port):
            assert result() is None
            assert ask(url, "ready") is True


@pytest.mark.parametrize(("status", "slug"), [(503, "not-ready"), (507, "disk-full"), (429, "busy")])
def test_a_service_that_is_busy_is_asked_again(app, url, status, slug):
    @app.get("/adapters")
    async def adapters():
        app.state.seen.append(status)
        if len(app.state.seen) < 3:
            return JSONResponse({}, status, {"retry-after": "0"})
        return described("d")

    assert ask(url, "adapters").base.digest == "d"
    assert len(app.state.seen) == 3


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422, 500, 501])
def test_other_errors_are_told_at_once(app, url, status):
    @app.get("/adapters")
    async def adapters():
        app.state.seen.append(status)
        raise ProblemError("stale-parent", status, "text is at 17", head=17)

    with pytest.raises(ServiceError) as caught:
        ask(url, "adapters")
    error = caught.value
    assert (error.type, error.status, error.detail, error.more) == (
        "stale-parent",
        status,
        "text is at 17",
        {"head": 17},
    )
    assert isinstance(error, UserError) == (status < 500)
    assert len(app.state.seen) == 1


def test_a_wait_longer_than_the_deadline_is_not_begun(app, url):
    @app.get("/adapters")
    async def adapters():
        app.state.seen.append(1)
        raise ProblemError("busy", 429, "full", retry_after_s=3600)

    with pytest.raises(ServiceError, match="gave up after 60 s") as caught:
        ask(url, "adapters")
    assert (caught.value.type, caught.value.status, caught.value.retry_after_s) == ("busy", 429, 3600)
    assert len(app.state.seen) == 1


def test_a_service_that_never_answers_ends_the_call_at_its_deadline(app, url):
    @app.get("/adapters")
    async def adapters(request: Request):
        await request.body()
        await request.receive()  # until the client has gone

    with pytest.raises(ServiceError, match=r"no answer within 0\.3 s, timed out") as caught:
        ask(url, "adapters", options={"timeout_s": 0.3})
    assert (caught.value.type, caught.value.is_away) == ("too-slow", False)
    assert "\n" not in str(caught.value)


def test_nobody_there_is_the_users_error():
    listener, port = listening()
    listener.close()
    with pytest.raises(RefusedError, match="connection refused; start the service") as caught:
        ask(f"http://127.0.0.1:{port}", "adapters", options={"timeout_s": 0.3})
    assert caught.value.is_away


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (binary(b"garbage"), "not the safetensors body"),
        (Response(b'{"adapters": 7}', media_type="application/json"), "1 places do not fit LogprobsResponse"),
        (Response(b"\xff{", media_type="application/json"), "do not fit"),
        (HTMLResponse("<p>Welcome"), "its content type is 'text/html'"),
        (Response(b""), "its content type is ''"),
        (RedirectResponse("http://127.0.0.1:1/"), "a redirection"),
        (Response(b"garbage" * 9, headers={"content-encoding": "gzip"}), "cannot be decoded"),
    ],
)
def test_an_answer_of_another_program_is_an_error_at_once(app, url, answer, says):
    @app.post("/logprobs")
    async def logprobs():
        app.state.seen.append(1)
        return answer

    with pytest.raises(ServiceError, match=says) as caught:
        ask(url, "logprobs", ["base"], REQUEST)
    assert caught.value.type == "bad-answer"
    assert not isinstance(caught.value, UserError)
    assert len(app.state.seen) == 1


def test_an_error_without_a_reason_is_told_by_its_status(app, url):
    @app.get("/adapters")
    async def adapters():
        return HTMLResponse("<h1>Bad Gateway", 502)

    with pytest.raises(ServiceError, match="GET /adapters: status 502 without a reason") as caught:
        ask(url, "adapters")
    assert caught.value.type == "http-502"


HALF_ANSWERED = """
import asyncio, json, socket, sys
import uvicorn

body = sys.argv[2].encode()
whole = sys.argv[3] == "whole"

async def app(scope, receive, send):
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body if whole else body[:20], "more_body": not whole})
    if not whole:
        print("half", flush=True)
        await asyncio.sleep(600)

listener = socket.socket(fileno=int(sys.argv[1]))
uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none")).run(sockets=[listener])
"""


def test_a_service_killed_in_the_middle_of_an_answer_is_asked_again():
    listener, port = listening()
    body = described("d").model_dump_json()

    def start(how):
        command = [sys.executable, "-c", HALF_ANSWERED, str(listener.fileno()), body, how]
        return subprocess.Popen(command, pass_fds=[listener.fileno()], stdout=subprocess.PIPE, text=True)

    with listener, start("half") as first, in_thread(ask, f"http://127.0.0.1:{port}", "adapters") as result:
        assert first.stdout is not None
        assert first.stdout.readline() == "half\n"
        first.send_signal(signal.SIGKILL)
        with start("whole") as second:
            assert result().base.digest == "d"
            second.kill()


# ---- pauses ----


def busy(retry_after_s=None):
    error = error_of("busy", 429, "full")
    error.retry_after_s = retry_after_s
    return error


def test_pauses_grow_to_two_seconds_and_never_undercut_retry_after():
    deadline = RetryDeadline("url", 10_000.0)
    pauses = [deadline.pause_after(busy()) for _ in range(50)]
    assert all(0.05 <= pause <= 2.0 for pause in pauses)
    assert pauses[0] <= 0.1
    assert min(pauses[10:]) >= 1.0
    assert deadline.pause_after(busy(retry_after_s=30.0)) == 30.0


def test_errors_survive_being_pickled():
    error = error_of("stale-parent", 409, "text is at 17")
    error.more = {"head": 17}
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.type, again.status, str(again), again.more) == (
        RefusedError,
        "stale-parent",
        409,
        "text is at 17 (stale-parent)",
        {"head": 17},
    )


def test_a_call_that_is_tried_for_long_says_so_once(caplog):
    caplog.set_level(logging.INFO, "clients.retries")
    deadline = RetryDeadline("http://here", 60.0)
    for _ in range(5):
        assert deadline.pause_after(httpx.ConnectError("refused")) > 0
    (record,) = caplog.records
    assert record.getMessage() == "http://here: connection refused; trying again for 60 s"
