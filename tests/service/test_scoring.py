import asyncio

import numpy as np
import pytest

from service.engine.vllm import EngineMedia, EngineScores, LoadedAdapter
from service.http.metrics import Metrics
from service.scoring import Scorer, Scoring
from tests.service.http.test_metrics import value

pytestmark = pytest.mark.anyio


async def turns(count=10):
    for _ in range(count):
        await asyncio.sleep(0)


class RecordingEngine:
    """The engine as the scorer sees it: answers with the sum of the completion, when its gate is open."""

    def __init__(self):
        self.requests = []
        self.aborted = []
        self.fails = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def score(self, prompt, media, completion, adapter, *, top_k, token_ids):
        self.requests.append(completion)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            await turns(6)  # an abort takes a while
            self.aborted.append(completion)
            raise
        if self.fails:
            raise self.fails.pop()
        return answer(completion)


def answer(completion):
    return EngineScores(
        1, np.array(completion, np.float32), np.zeros((1, 0), np.int32), np.zeros((1, 0), np.float32), False
    )


def sequence(*completion):
    return Scoring((1,), completion, EngineMedia())


def adapter(tmp_path, number):
    return LoadedAdapter(f"text@{number}", number, tmp_path)


@pytest.fixture
async def engine():
    return RecordingEngine()


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
async def scorer(engine, metrics):
    return Scorer(engine, metrics)


def counted(metrics):
    return [value(metrics, f"coevo_score_cache_{kind}_total") for kind in ("hits", "misses")]


async def request(scorer, *sequences, adapter=None, digest="d"):
    """A request that has reached the engine."""
    task = asyncio.create_task(scorer.score(sequences, adapter, digest, 0))
    await turns()
    return task


async def completions(task):
    return [scores.logprobs_C.tolist() for scores in await task]


async def test_answers_are_in_order_and_remembered(engine, scorer, metrics) -> None:
    for _ in range(2):
        results = await scorer.score([sequence(1), sequence(2), sequence(3)], None, "d", 0)
        assert [scores.logprobs_C.tolist() for scores in results] == [[1], [2], [3]]
    assert sorted(engine.requests) == [(1,), (2,), (3,)]
    assert counted(metrics) == [3, 3]


async def test_only_the_last_results_are_kept(engine, metrics) -> None:
    scorer = Scorer(engine, metrics, keep_bytes=2500)  # two of a thousand each, and their numbers
    for number in (1, 2, 1, 3, 1, 2):  # 3 drives out 2, which was used before 1
        await scorer.score([sequence(number)], None, "d", 0)
    assert engine.requests == [(1,), (2,), (3,), (2,)]


async def test_equal_sequences_in_flight_are_computed_once(engine, scorer, metrics) -> None:
    engine.gate.clear()
    first = await request(scorer, sequence(1), sequence(2), sequence(1))
    second = await request(scorer, sequence(2), sequence(1))
    assert sorted(engine.requests) == [(1,), (2,)]
    engine.gate.set()
    assert await completions(first) == [[1], [2], [1]]
    assert await completions(second) == [[2], [1]]
    assert sorted(engine.requests) == [(1,), (2,)]
    assert counted(metrics) == [3, 2]


async def test_other_weights_and_other_adapters_are_computed_apart(engine, scorer, tmp_path) -> None:
    """Two adapters of one content too: each request keeps only its own in the engine."""
    engine.gate.clear()
    tasks = [
        await request(scorer, sequence(1), adapter=adapter(tmp_path, number), digest=digest)
        for number, digest in ((1, "d"), (2, "e"), (3, "e"))
    ]
    assert len(engine.requests) == 3
    engine.gate.set()
    assert [await completions(task) for task in tasks] == [[[1]]] * 3


@pytest.mark.parametrize("gone", [0, 1, 2])
async def test_the_rest_get_their_answer_when_one_hangs_up(gone, engine, scorer) -> None:
    engine.gate.clear()
    tasks = [await request(scorer, sequence(1)) for _ in range(3)]
    tasks[gone].cancel()
    await turns()
    assert tasks[gone].cancelled()
    tasks.pop(gone)
    tasks.append(await request(scorer, sequence(1)))
    engine.gate.set()
    assert [await completions(task) for task in tasks] == [[[1]]] * 3
    assert (engine.requests, engine.aborted) == ([(1,)], [])


async def test_when_all_have_hung_up_the_engine_is_told_before_they_leave(engine, scorer) -> None:
    engine.gate.clear()
    tasks = [await request(scorer, sequence(1)) for _ in range(2)]
    for task in tasks:
        task.cancel()
    for task in tasks:
        with pytest.raises(asyncio.CancelledError):
            await task
    assert engine.aborted == [(1,)]


@pytest.mark.parametrize("delay", range(16))
async def test_who_comes_while_another_hangs_up_is_answered(delay, engine, scorer) -> None:
    engine.gate.clear()
    first = await request(scorer, sequence(1))
    first.cancel()
    await turns(delay)
    second = await request(scorer, sequence(1))
    engine.gate.set()
    assert await completions(second) == [[1]]
    assert first.cancelled()
    assert len(engine.requests) == 1 + len(engine.aborted)


async def test_a_failure_reaches_all_who_wait_and_is_forgotten(engine, scorer) -> None:
    engine.gate.clear()
    tasks = [await request(scorer, sequence(1)) for _ in range(3)]
    engine.fails = [ValueError("too long")]
    engine.gate.set()
    for error in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(error, ValueError)
    assert await completions(await request(scorer, sequence(1))) == [[1]]
    assert engine.requests == [(1,), (1,)]


async def test_a_failed_request_takes_nothing_from_another(engine, scorer) -> None:
    """Its other sequences are cancelled; those that somebody else wants go on."""
    engine.gate.clear()
    first = await request(scorer, sequence(1), sequence(2), sequence(3))
    second = await request(scorer, sequence(2))
    first.cancel()
    await turns()
    assert sorted(engine.aborted) == [(1,), (3,)]
    engine.gate.set()
    assert await completions(second) == [[2]]
    assert len(engine.requests) == 3


async def test_nothing_is_left_in_flight(engine, scorer) -> None:
    """However each of many requests ends, later ones are answered, from memory or anew."""
    rng, before = np.random.default_rng(0), asyncio.all_tasks()
    for _ in range(30):
        engine.gate.clear()
        tasks = [await request(scorer, *(sequence(int(number)) for number in rng.integers(0, 40, 3))) for _ in range(4)]
        engine.fails = [ValueError()] * int(rng.integers(0, 2))
        for task in tasks:
            if rng.random() < 0.4:
                task.cancel()
        await turns(int(rng.integers(0, 4)))
        engine.gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
    engine.fails = []
    results = await scorer.score([sequence(number) for number in range(40)], None, "d", 0)
    assert [scores.logprobs_C.tolist() for scores in results] == [[number] for number in range(40)]
    assert asyncio.all_tasks() == before
