import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.admission import Admission, tokens_of_generation, tokens_of_openai, tokens_of_scoring
from service.http.problems import ProblemError
from service.openai_schemas import ChatRequest, CompletionRequest
from service.schemas import Chat, GenerateRequest, LogprobsRequest, Message, Prompt, Sequence, TextPart

FOREVER_S = 30.0


def admission(max_requests=2, max_tokens=10, max_waiting=100, max_wait_s=FOREVER_S):
    return Admission(max_requests=max_requests, max_tokens=max_tokens, max_waiting=max_waiting, max_wait_s=max_wait_s)


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


async def hold(gate, tokens, leave, log=None, name=None):
    async with gate.admit(tokens):
        if log is not None:
            log.append(name)
        await leave.wait()


WORK = st.tuples(
    st.integers(0, 5),  # turns of the event loop before it comes
    st.integers(1, 15),  # its tokens
    st.integers(0, 5),  # turns in the engine
    st.none() | st.integers(0, 12),  # turns until it is cancelled
    st.booleans(),  # whether it fails
)


@given(st.lists(WORK, max_size=20), st.integers(1, 4), st.integers(1, 12), st.integers(0, 20))
def test_never_above_the_limits_and_nobody_stuck_or_lost(works, max_requests, max_tokens, max_waiting):
    async def scenario():
        gate = admission(max_requests, max_tokens, max_waiting)
        inside = []

        async def work(start, tokens, stay, fails):
            await turns(start)
            try:
                async with gate.admit(tokens):
                    inside.append(min(tokens, max_tokens))
                    try:
                        assert len(inside) <= max_requests
                        assert sum(inside) <= max_tokens
                        await turns(stay)
                        if fails:
                            raise RuntimeError
                    finally:
                        inside.remove(min(tokens, max_tokens))
            except ProblemError as error:
                return error.type
            except RuntimeError:
                return "failed"
            return "done"

        async def cancel(task, after):
            await turns(after)
            task.cancel()

        tasks = [asyncio.ensure_future(work(a, b, c, fails)) for a, b, c, _, fails in works]
        cancels = [
            asyncio.ensure_future(cancel(task, after))
            for task, (*_, after, _) in zip(tasks, works, strict=True)
            if after is not None
        ]
        async with asyncio.timeout(FOREVER_S):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*cancels)
        for outcome, (*_, after, _) in zip(outcomes, works, strict=True):
            assert outcome in ("done", "failed", "busy") or (
                after is not None and isinstance(outcome, asyncio.CancelledError)
            )
        assert (gate.requests, gate.tokens, gate.waiting) == (0, 0, 0)

    asyncio.run(scenario())


def test_a_large_request_is_not_passed_by_small_ones():
    async def scenario():
        gate, leave, log = admission(max_requests=10), asyncio.Event(), []
        small = [asyncio.ensure_future(hold(gate, 4, leave, log, "small")) for _ in range(2)]
        await turns(2)
        large = asyncio.ensure_future(hold(gate, 10, leave, log, "large"))
        await turns(2)
        late = asyncio.ensure_future(hold(gate, 1, leave, log, "late"))
        await turns(4)
        assert (log, gate.waiting) == (["small", "small"], 2)
        leave.set()
        await asyncio.gather(*small, large, late)
        assert log == ["small", "small", "large", "late"]

    asyncio.run(scenario())


def test_a_request_larger_than_everything_runs_alone():
    async def scenario():
        gate = admission()
        async with gate.admit(10**9):
            assert gate.tokens == 10

    asyncio.run(scenario())


def test_one_more_than_may_wait_is_told_when_to_come_back():
    async def scenario():
        gate, leave = admission(max_requests=1, max_waiting=1), asyncio.Event()
        held = [asyncio.ensure_future(hold(gate, 1, leave)) for _ in range(2)]
        await turns(2)
        with pytest.raises(ProblemError) as caught:
            await hold(gate, 1, leave)
        assert (caught.value.type, caught.value.status) == ("busy", 429)
        assert caught.value.retry_after_s is not None
        leave.set()
        await asyncio.gather(*held)

    asyncio.run(scenario())


def test_a_wait_that_is_too_long_ends_and_leaves_no_trace():
    async def scenario():
        gate, leave = admission(max_requests=1, max_wait_s=0.02), asyncio.Event()
        held = asyncio.ensure_future(hold(gate, 1, leave))
        await turns(2)
        with pytest.raises(ProblemError, match=r"no room within 0\.02 s"):
            await hold(gate, 1, leave)
        assert gate.waiting == 0
        leave.set()
        await held
        assert (gate.requests, gate.tokens) == (0, 0)

    asyncio.run(scenario())


def test_when_the_head_of_the_line_gives_up_those_behind_it_go():
    async def scenario():
        gate, leave, log = admission(max_requests=10), asyncio.Event(), []
        first = asyncio.ensure_future(hold(gate, 5, leave, log, "first"))
        await turns(2)
        large = asyncio.ensure_future(hold(gate, 10, leave, log, "large"))
        small = asyncio.ensure_future(hold(gate, 5, leave, log, "small"))
        await turns(2)
        assert log == ["first"]
        large.cancel()
        await turns(4)
        assert log == ["first", "small"]
        leave.set()
        await asyncio.gather(first, small)

    asyncio.run(scenario())


def test_a_grant_and_a_cancellation_in_one_turn_lose_no_room():
    async def scenario():
        gate, leave = admission(max_requests=1), asyncio.Event()
        async with gate.admit(1):
            second = asyncio.ensure_future(hold(gate, 1, leave))
            await turns(2)
        assert gate.requests == 1  # granted, though the second has not run yet
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert (gate.requests, gate.tokens, gate.waiting) == (0, 0, 0)

    asyncio.run(scenario())


def test_closed_is_who_lets_nobody_in_while_nothing_finishes():
    async def scenario():
        gate, leave = admission(max_requests=1, max_waiting=1), asyncio.Event()
        first = asyncio.ensure_future(hold(gate, 1, leave))
        await turns(2)
        assert gate.closed_s() == 0  # long work alone shuts nobody out
        second = asyncio.ensure_future(hold(gate, 1, leave))
        await asyncio.sleep(0.01)
        assert gate.closed_s() > 0
        leave.set()
        await asyncio.gather(first, second)
        assert gate.closed_s() == 0

    asyncio.run(scenario())


def test_a_refusal_closes_too_until_something_finishes():
    async def scenario():
        gate, leave = admission(max_requests=1, max_waiting=0), asyncio.Event()
        first = asyncio.ensure_future(hold(gate, 1, leave))
        await turns(2)
        with pytest.raises(ProblemError):
            await hold(gate, 1, leave)
        await asyncio.sleep(0.01)
        assert gate.closed_s() > 0
        leave.set()
        await first
        assert gate.closed_s() == 0

    asyncio.run(scenario())


PICTURE = {"type": "image_url", "image_url": {"url": "sha256:0"}}


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"messages": [{"role": "user", "content": "a" * 30}], "max_tokens": 20}, 19 + 20),
        ({"messages": [{"role": "user", "content": "a" * 30}], "max_completion_tokens": 20, "n": 4}, 19 + 80),
        ({"messages": [{"role": "user", "content": [PICTURE, PICTURE]}], "max_tokens": 1}, 8 + 200 + 1),
        ({"messages": [{"role": "user", "content": ""}]}, 9 + 991),
        ({"messages": [{"role": "user", "content": ""}], "max_tokens": 10**9, "n": 2}, 9 + 2 * 991),
        ({"prompt": "a" * 30, "max_tokens": 20}, 11 + 20),
        ({"prompt": ["a" * 30, "a"], "max_tokens": 20, "n": 3}, 11 + 60 + 1 + 60),
        ({"prompt": [1] * 10, "max_tokens": 5}, 10 + 5),
        ({"prompt": [[1] * 10, [1] * 20], "max_tokens": 5}, 10 + 5 + 20 + 5),
        ({"prompt": [1] * 5000, "max_tokens": 5}, 1000 + 1),
        ({"prompt": "a"}, 1 + 16),
    ],
)
def test_openai_counts_pictures_prompts_and_every_completion(body, tokens):
    request = (ChatRequest if "messages" in body else CompletionRequest).model_validate(body)
    assert tokens_of_openai(request, media_tokens=100, max_model_len=1000) == tokens


def test_scoring_counts_every_token_once_for_each_adapter():
    sequences = [Sequence(prompt=[1] * 10, completion=[2] * 5, images=["x"]), Sequence(prompt=[1], completion="abcdef")]
    request = LogprobsRequest(sequences=sequences)
    assert tokens_of_scoring(request, 3, media_tokens=100, max_model_len=1000) == 3 * (115 + 1 + 3)
    assert tokens_of_scoring(request, 1, media_tokens=100, max_model_len=50) == 50 + 4


def test_generation_counts_the_prompt_once_and_every_completion():
    chat = Chat(messages=[Message(role="user", content=[TextPart(type="text", text="a" * 30)])])
    request = GenerateRequest(prompts=[Prompt(prompt=[1] * 10), Prompt(prompt=chat)], n=4, max_tokens=20)
    assert tokens_of_generation(request, media_tokens=0, max_model_len=1000) == (10 + 80) + (19 + 80)
    open_ended = GenerateRequest(prompts=[Prompt(prompt=[1] * 10)], n=2)
    assert tokens_of_generation(open_ended, media_tokens=0, max_model_len=50) == 10 + 2 * 40
