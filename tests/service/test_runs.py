import asyncio
import json
import logging
import os
import re
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import httpx
import pytest
import safetensors.numpy
from fastapi import FastAPI

from adapters.store import DiskFullError
from service.http import problems
from service.http.auth import BodyLimit
from service.routes import runs as routes_runs
from service.routes.runs import follow
from service.runs import MOST_AT_ONCE, Runs
from service.schemas import SAFETENSORS, StepRollouts
from tests import disks
from tests.service import records
from trainer.queue.client import Queue
from trainer.queue.server import start

pytestmark = pytest.mark.anyio
PATIENCE_S = 30.0
LIMIT = 100_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with start(tmp_path_factory.mktemp("queue")) as server:
        yield server


@pytest.fixture
def queue(server):
    queue = Queue(server.url)
    queue._redis.flushall()
    yield queue
    queue.close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def runs(folder):
    return Runs(folder)


class CutOff:
    """A queue that the service loses, or dies beside, between the write and the forgetting."""

    def __init__(self, queue):
        self._queue = queue

    def events(self, most=MOST_AT_ONCE):
        return self._queue.events(most)

    def forget(self, names):
        raise ConnectionError


def info_of(runs, run="first"):
    info = runs.info(run)
    assert info is not None
    return info


def lines(folder, run="first"):
    return [json.loads(line) for line in (folder / run / "events.jsonl").read_text().splitlines()]


def steps(folder, run="first"):
    return [event["step"] for event in lines(folder, run)]


def tell_steps(queue, *numbers, run="first"):
    for number in numbers:
        queue.tell(run, "step", branch="image", step=number, metrics={"native/reward": number / 10})


# ---- events ----


def test_an_event_becomes_a_line_with_its_name_in_the_queue(queue, runs, folder):
    queue.tell("first", "lease", branch="image", worker="w", what="claimed", id="mine")
    ((name, event),) = queue.events()
    before = datetime.now(UTC)
    assert runs.drain(queue) == 1
    (line,) = lines(folder)
    assert before <= datetime.fromisoformat(line.pop("at")) <= datetime.now(UTC)
    assert line == event | {"id": name}
    assert queue.events() == []
    assert runs.drain(queue) == 0


def test_runs_are_summed_up_and_again_after_a_start(queue, runs, folder):
    queue.tell("first", "run", state="running", name="mutual", branches={"image": 9, "text": 8})
    tell_steps(queue, 1, 2)
    queue.tell("first", "step", branch="text", step=1, metrics={"native/reward": None})
    queue.tell("first", "step", branch="image", step=1, metrics={"native/reward": 9.0})  # an old one, told again
    queue.tell("first", "step", branch=3, step="x")
    queue.tell("first", "unheard-of", state=3)
    runs.drain(queue)
    queue.tell("second", "run", state="finished", name="single", branches={})
    runs.drain(queue)
    for opened in (runs, Runs(folder)):
        second, first = opened.infos()
        assert (second.id, second.state, second.name, second.branches) == ("second", "finished", "single", {})
        assert (first.id, first.state, first.name, first.num_events) == ("first", "running", "mutual", 7)
        assert first.branches["image"].model_dump() == {"head": 2, "last": 9, "reward": 0.2, "notice": None}
        assert first.branches["text"].model_dump() == {"head": 1, "last": 8, "reward": None, "notice": None}
        assert (first.started, second.updated) == (info_of(runs).started, info_of(runs, "second").updated)
        assert first.started <= first.updated < second.started


def test_a_notice_stands_until_the_reward_rises(queue, runs):
    for step, reward, notice in ((1, 0.0, None), (1, None, "cannot learn"), (2, 0.0, "cannot learn"), (3, 0.1, None)):
        if reward is None:
            queue.tell("first", "unrewarded", branch="image", step=step, text="cannot learn")
        else:
            queue.tell("first", "step", branch="image", step=step, metrics={"native/reward": reward})
        runs.drain(queue)
        assert info_of(runs).branches["image"].notice == notice


def test_a_batch_that_was_not_forgotten_is_not_written_again(queue, runs, folder):
    tell_steps(queue, 1, 2)
    tell_steps(queue, 7, run="second")
    with pytest.raises(ConnectionError):
        runs.drain(CutOff(queue))
    tell_steps(queue, 3)
    for opened in (runs, Runs(folder)):
        with pytest.raises(ConnectionError):
            opened.drain(CutOff(queue))
        assert (steps(folder), steps(folder, "second")) == ([1, 2, 3], [7])
    tell_steps(queue, 4)
    Runs(folder).drain(queue)
    assert (steps(folder), steps(folder, "second"), queue.events()) == ([1, 2, 3, 4], [7], [])


@pytest.mark.parametrize("cut", [1, 40])
def test_a_line_that_was_cut_off_is_written_again(queue, runs, folder, cut):
    """A crash in the middle of a batch: one run's lines are there, another's are not, and one is half there."""
    tell_steps(queue, 1)
    runs.drain(queue)
    tell_steps(queue, 2, 3)
    tell_steps(queue, 7, run="second")
    with pytest.raises(ConnectionError):
        runs.drain(CutOff(queue))
    path = folder / "first" / "events.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    (folder / "second" / "events.jsonl").unlink()
    again = Runs(folder)
    assert steps(folder) == [1, 2]
    assert info_of(again).num_events == 2
    again.drain(queue)
    assert (steps(folder), steps(folder, "second")) == ([1, 2, 3], [7])


def test_events_that_the_queue_has_dropped_are_not_waited_for(queue, runs, folder):
    tell_steps(queue, 1)
    with pytest.raises(ConnectionError):
        runs.drain(CutOff(queue))
    queue._redis.flushall()
    tell_steps(queue, 2)
    runs.drain(queue)
    assert steps(folder) == [1, 2]


def test_more_events_than_a_batch_holds_come_in_their_order(queue, runs, folder):
    with queue._redis.pipeline() as pipe:
        for number in range(MOST_AT_ONCE + 1):
            event = json.dumps({"run": "first", "kind": "step", "branch": "image", "step": number})
            pipe.xadd("coevo:events", {"event": event})
        pipe.execute()
    assert [runs.drain(queue), runs.drain(queue)] == [MOST_AT_ONCE, 1]
    assert steps(folder) == [*range(MOST_AT_ONCE + 1)]


@pytest.mark.parametrize("run", ["..", "../first", "/first", "First", "", "f" * 65, "first\n", "a/b", 3, None])
def test_an_event_of_no_run_is_dropped_and_never_a_path(queue, runs, folder, run, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "service.runs")
    queue.tell(run, "step", branch="image", step=1)
    tell_steps(queue, 1)
    before = {path.name for path in tmp_path.iterdir()}
    assert runs.drain(queue) == 2
    assert queue.events() == []
    assert {path.name for path in tmp_path.iterdir()} - before == {"runs"}
    assert [path.name for path in folder.iterdir()] == ["first"]
    assert "1 events of no run are dropped" in caplog.text


def test_an_event_that_is_no_object_is_dropped(queue, runs, folder):
    queue._redis.xadd("coevo:events", {"event": "[1]"})
    assert runs.drain(queue) == 1
    assert not folder.exists()


def test_lines_are_json_whatever_an_event_holds(queue, runs, folder):
    queue.tell(
        "first", "step", branch="image", step=1, metrics={"a": [float("nan")], "b": float("inf")}, text="\u2028\n"
    )
    runs.drain(queue)
    (line,) = (folder / "first" / "events.jsonl").read_bytes().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["metrics"] == {"a": [None], "b": None}
    assert json.loads(line)["text"] == "\u2028\n"


def test_a_damaged_line_is_passed_over(queue, runs, folder):
    tell_steps(queue, 1, 2, 3)
    runs.drain(queue)
    path = folder / "first" / "events.jsonl"
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(b"{", b"\0") + third)
    info = info_of(Runs(folder))
    assert (info.num_events, info.branches["image"].head) == (3, 3)


def test_a_runs_folder_that_is_deleted_begins_again(queue, runs, folder):
    tell_steps(queue, 1, 2)
    runs.drain(queue)
    (folder / "first" / "events.jsonl").unlink()
    (folder / "first").rmdir()
    tell_steps(queue, 3)
    runs.drain(queue)
    assert steps(folder) == [3]
    assert info_of(runs).num_events == 1


@pytest.fixture
def small_disk(tmp_path):
    with disks.small_disk(tmp_path / "small", "64k") as folder:
        yield folder


def test_with_a_full_disk_events_stay_in_the_queue(queue, small_disk):
    runs = Runs(small_disk / "runs")
    tell_steps(queue, 1)
    runs.drain(queue)
    ballast = disks.fill(small_disk, 0)
    for number in range(2, 50):
        queue.tell("first", "step", branch="image", step=number, text="x" * 200)
    with pytest.raises(DiskFullError):
        runs.drain(queue)
    assert len(queue.events()) == 48
    assert steps(small_disk / "runs") == [1]
    assert info_of(runs).num_events == 1
    with pytest.raises(DiskFullError), runs.receive_rollouts("first", "image", 3) as file:
        file.write(bytes(5000))
    assert [path for path in (small_disk / "runs").rglob("*") if path.is_file()] == [
        small_disk / "runs/first/events.jsonl"
    ]
    ballast.unlink()
    runs.drain(queue)
    assert steps(small_disk / "runs") == [*range(1, 50)]


# ---- over HTTP ----


@pytest.fixture
def app(runs):
    app = FastAPI()
    app.state.service = SimpleNamespace(runs=runs, settings=SimpleNamespace(body_bytes=LIMIT))
    problems.install(app)
    app.include_router(routes_runs.router)
    return BodyLimit(app, LIMIT, {})


async def ask(app, method, path, **more):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        return await client.request(method, path, **more)


async def test_runs_are_listed_and_described(app, queue, runs):
    assert (await ask(app, "GET", "/runs")).json() == {"runs": []}
    tell_steps(queue, 4)
    runs.drain(queue)
    (listed,) = (await ask(app, "GET", "/runs")).json()["runs"]
    assert (listed["id"], listed["branches"]["image"]["head"]) == ("first", 4)
    assert (await ask(app, "GET", "/runs/first")).json() == listed


@pytest.mark.parametrize("path", ["/runs/no", "/runs/no/events", "/runs/no/rollouts/image/3"])
async def test_what_is_not_there_is_unknown(app, path):
    answer = await ask(app, "GET", path)
    assert (answer.status_code, answer.json()["type"]) == (404, "unknown-run")


@pytest.mark.parametrize("path", ["/runs/NO", "/runs/a/rollouts/..%2f/3", "/runs/a/rollouts/image/-1", "/runs/a%0a"])
async def test_names_that_cannot_be_are_invalid(app, path):
    assert (await ask(app, "GET", path)).status_code in (404, 422)


class Following:
    """A caller of the events' route as a server sees him; `text` is what has come so far."""

    def __init__(self, app, path, query="", **headers):
        self.text, self.status = "", None
        self._gone = asyncio.Event()
        self._is_read = False
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},  # as uvicorn has it
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self):
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self.status = message.get("status", self.status)
        self.text += message.get("body", b"").decode()

    async def leave(self):
        self._gone.set()
        await asyncio.wait_for(self.task, PATIENCE_S)

    @property
    def events(self):
        """Their numbers and steps."""
        blocks = [dict(line.split(": ", 1) for line in text.splitlines()) for text in self.text.split("\n\n") if text]
        return [(int(block["id"]), json.loads(block["data"])["step"]) for block in blocks]


async def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("query", "headers", "first"),
    [
        ("", {}, 1),
        ("after=2", {}, 3),
        ("after=1", {"last_event_id": "2"}, 3),
        ("", {"last_event_id": "0"}, 1),
        ("after=3", {}, 4),
        ("after=9", {}, 1),  # the run has begun again since then
    ],
)
async def test_who_follows_a_run_goes_on_where_he_was(app, queue, runs, query, headers, first):
    tell_steps(queue, 10, 20, 30)
    runs.drain(queue)
    following = Following(app, "/runs/first/events", query, **headers)
    await until(lambda: len(following.events) == 4 - first)
    tell_steps(queue, 40)
    tell_steps(queue, 99, run="second")
    runs.drain(queue)
    runs.announce()
    await until(lambda: len(following.events) == 5 - first)
    assert following.events == [(1, 10), (2, 20), (3, 30), (4, 40)][first - 1 :]
    assert following.status == 200
    await following.leave()


@pytest.mark.parametrize("number", ["x", "-1", "1e3"])
async def test_a_number_that_is_none_is_invalid(app, queue, runs, number):
    tell_steps(queue, 1)
    runs.drain(queue)
    assert (await ask(app, "GET", f"/runs/first/events?after={number}")).status_code == 422
    assert (await ask(app, "GET", "/runs/first/events", headers={"last-event-id": number})).status_code == 422


async def test_many_events_come_whole_and_in_order(app, queue, runs, monkeypatch):
    monkeypatch.setattr("service.runs._READ_BYTES", 1000)
    tell_steps(queue, *range(1, 101))
    runs.drain(queue)
    following = Following(app, "/runs/first/events")
    await until(lambda: len(following.events) == 100)
    assert following.events == [(number, number) for number in range(1, 101)]
    await following.leave()


async def test_the_stream_ends_when_the_service_stops(app, queue, runs):
    tell_steps(queue, 1)
    runs.drain(queue)
    following = Following(app, "/runs/first/events")
    await until(lambda: following.events)
    runs.close()
    await asyncio.wait_for(following.task, PATIENCE_S)


async def test_a_stream_without_events_is_kept_alive(queue, runs):
    tell_steps(queue, 1)
    runs.drain(queue)
    stream = follow(runs, "first", 1, keep_alive_s=0.01)
    assert [await anext(stream), await anext(stream)] == [": nothing new\n\n"] * 2
    await stream.aclose()


# ---- rollouts ----

PATH = "/runs/first/rollouts/image/3"


@pytest.fixture
def body(tmp_path):
    return records.write(tmp_path / "record").read_bytes()


async def put(app, content, path=PATH):
    return await ask(app, "PUT", path, content=content)


async def test_rollouts_are_read_in_pages(app, body):
    assert (await put(app, body)).json() == {"removed": []}
    page = StepRollouts.model_validate((await ask(app, "GET", f"{PATH}?count=2")).json())
    assert (page.run, page.branch, page.step, page.metrics) == ("first", "image", 3, {"native/reward": 0.5})
    assert [(part.name, part.num_groups, len(part.groups)) for part in page.parts] == [
        ("native", 5, 2),
        ("image", 1, 1),
    ]
    taught, left = page.parts[1].groups[0].completions
    assert (taught.token_ids, taught.delta) == (records.IDS, [2.0, -2.0, 0.0, 0.5])
    assert (left.reward, left.why, left.is_cut_off, left.advantages, left.logprobs) == (
        None, "it hung", True, None, [-1.25] * 3,
    )  # fmt: skip
    last = (await ask(app, "GET", f"{PATH}?part=native&first=4&count=9")).json()
    ((part,),) = ((part for part in last["parts"]),)
    assert (part["first"], [group["question"] for group in part["groups"]]) == (4, ["4+1?"])


async def test_a_long_page_ends_early_and_has_a_prompt_at_least(app, body, monkeypatch):
    await put(app, body)
    monkeypatch.setattr("service.routes.runs._PAGE_TOKENS", 20)
    counts = [
        [len(part["groups"]) for part in (await ask(app, "GET", f"{PATH}?{query}")).json()["parts"]]
        for query in ("part=native", "part=native&first=4", "")
    ]
    assert counts == [[2], [1], [1, 1]]


async def test_a_record_comes_back_as_it_was_put_for_any_reader_of_safetensors(app, body, tmp_path):
    await put(app, body)
    answer = await ask(app, "GET", PATH, headers={"accept": SAFETENSORS})
    assert answer.content == body
    arrays = safetensors.numpy.load(answer.content)
    assert arrays["image/0/ids"].tolist() == [*records.IDS, *records.IDS[:3]]
    assert arrays["image/0/delta"].tolist() == [2.0, -2.0, 0.0, 0.5]
    assert arrays["native/4/prompt_ids"].tolist() == [1, 2]


async def test_rollouts_that_are_put_again_replace_the_first(app, body, folder, tmp_path):
    shorter = records.write(tmp_path / "shorter", parts={"native": records.groups()["native"][:1]})
    for content in (body, shorter.read_bytes()):
        assert (await put(app, content)).status_code == 200
    (part,) = (await ask(app, "GET", PATH)).json()["parts"]
    assert part["num_groups"] == 1
    assert [path.name for path in (folder / "first/rollouts/image").iterdir()] == ["3.safetensors"]


async def test_only_the_last_records_are_kept_if_so_wished(app, tmp_path):
    removed: list[list[int]] = []
    for step in (1, 2, 10, 11, 3):
        body = records.write(tmp_path / "record", step=step).read_bytes()
        removed.append((await put(app, body, f"/runs/first/rollouts/image/{step}?keep=2")).json()["removed"])
    # In the end the run goes on from an older revision: what was made later is replaced by and by.
    assert removed == [[], [], [1], [2], []]
    assert (await ask(app, "GET", "/runs/first/rollouts")).json() == {"branches": {"image": [3, 10, 11]}}
    answer = await ask(app, "GET", "/runs/first/rollouts/image/2")
    assert (answer.status_code, answer.json()["type"]) == (404, "unknown-run")
    assert "no rollouts of step 2 of image; it has those of 3, 10, 11" in answer.json()["detail"]


async def test_a_part_that_is_not_there_is_told_with_those_that_are(app, body):
    await put(app, body)
    answer = await ask(app, "GET", f"{PATH}?part=video")
    assert (answer.status_code, answer.json()["detail"]) == (
        404, "part 'video': there is none of that name; it has native, image",
    )  # fmt: skip


def changed(body, **changes):
    """The record with other values in its header."""
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    head = json.loads(header["__metadata__"]["step"])
    head |= {name: value for name, value in changes.items() if name in head}
    header |= {name: value for name, value in changes.items() if name not in head}
    header = {name: value for name, value in header.items() if value is not None}
    header["__metadata__"] = {"step": json.dumps(head)}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body[8 + length :]


def span(begin, end, shape=None, dtype="I32"):
    return {"dtype": dtype, "shape": shape or [(end - begin) // 4], "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("damage", "status", "says"),
    [
        (lambda body: b"", 422, "not a step's record"),
        (lambda body: b"{", 422, "bytes; at most|not a step's record"),
        (lambda body: b"\xff" * 100, 422, "at most 16777216 are read"),
        (lambda body: body[:-1], 422, "not as long as its header says"),
        (lambda body: body + b"x", 422, "not as long as its header says"),
        (lambda body: body[:-4] + b"\0\0\xc0\x7f", 422, "not finite"),
        (lambda body: changed(body, step=4), 422, "not those of the path"),
        (lambda body: changed(body, branch="text"), 422, "not those of the path"),
        (lambda body: changed(body, metrics={"a": "b"}), 422, "1 places do not fit"),
        (lambda body: changed(body, parts=[{"name": "../x", "capability": None, "num_groups": 1}]), 422, "not fit"),
        (lambda body: changed(body, parts=[{"name": "x", "capability": None, "num_groups": 2**40}]), 422, "prompts"),
        (lambda body: changed(body, parts=[{"name": "x", "capability": None, "num_groups": 1}]), 422, "KeyError"),
        (lambda body: changed(body, **{"native/0/ids": None}), 422, "do not follow each other"),
        (lambda body: changed(body, **{"native/0/ids": span(0, 2**40)}), 422, "do not follow each other"),
        (lambda body: changed(body, **{"native/0/ids": span(4, 0)}), 422, "do not follow"),
        (lambda body: changed(body, **{"native/0/ids": "x"}), 422, "TypeError"),
        (lambda body: b" " * (LIMIT + 1), 413, "large"),
    ],
)  # fmt: skip
async def test_a_body_that_is_no_record_is_refused_and_leaves_nothing(app, folder, body, damage, status, says):
    answer = await put(app, damage(body))
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert re.search(says, answer.json()["detail"])
    assert [*folder.glob("*")] == []


async def test_tokens_that_do_not_fit_their_notes_are_refused(app, tmp_path):
    packed = records.group(0, records.completion())
    for name in ("ids", "logprobs"):
        body = records.write(tmp_path / "r", parts={"native": [packed | {name: packed[name][:-1]}]}).read_bytes()
        answer = await put(app, body)
        assert (answer.status_code, "other numbers of tokens" in answer.json()["detail"]) == (422, True)


def test_what_a_crash_left_half_written_is_gone_after_a_start(folder):
    folder.mkdir()
    (folder / ".0.part").write_bytes(b"x")
    runs = Runs(folder)
    assert list(folder.iterdir()) == []
    assert runs.infos() == []
