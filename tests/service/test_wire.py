import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from service.schemas import AdapterScores, Completion, Generated, GenerateResponse, LogprobsResponse, ScoredSequence
from service.wire import (
    ScoredArrays,
    WireError,
    decode_generated,
    decode_logprobs,
    decode_scores,
    encode_generated,
    encode_logprobs,
    pack_scores,
)

IDS = st.integers(0, 2**31 - 1)
LOGPROBS = st.floats(-(2.0**99), 0, width=32, allow_subnormal=False)
NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)


@st.composite
def positions(draw, token_ids):
    """Log-probs of the tokens given; sometimes with likeliest tokens, sometimes a different number at each."""
    slots = {
        "token_ids": token_ids,
        "logprobs": draw(st.lists(LOGPROBS, min_size=len(token_ids), max_size=len(token_ids))),
    }
    if draw(st.booleans()):
        width = draw(st.integers(0, 3))
        widths = [draw(st.integers(0, 3)) if draw(st.booleans()) else width for _ in token_ids]
        slots["top_ids"] = [draw(st.lists(IDS, min_size=n, max_size=n)) for n in widths]
        slots["top_logprobs"] = [draw(st.lists(LOGPROBS, min_size=n, max_size=n)) for n in widths]
    return slots


@st.composite
def scores(draw):
    sequences = draw(st.lists(st.tuples(st.lists(IDS, max_size=4), st.integers(0, 9999)), max_size=3))
    return LogprobsResponse(
        adapters=[
            AdapterScores(
                adapter=name,
                revision=draw(st.integers(0, 10**9)),
                digest=draw(st.text(max_size=5)),
                sequences=[ScoredSequence(**draw(positions(ids)), prompt_tokens=n) for ids, n in sequences],
            )
            for name in draw(st.lists(NAMES, min_size=1, max_size=3))
        ]
    )


@st.composite
def generations(draw):
    are_told = draw(st.booleans())

    def completion():
        reason = draw(st.sampled_from(["stop", "length"]))
        slots = draw(positions(draw(st.lists(IDS, max_size=4))))
        return Completion(**slots if are_told else slots | {"logprobs": []}, finish_reason=reason)

    prompts = [
        Generated(
            prompt_token_ids=draw(st.lists(IDS, max_size=4)),
            completions=[completion() for _ in range(draw(st.integers(0, 3)))],
        )
        for _ in range(draw(st.integers(0, 3)))
    ]
    return GenerateResponse(adapter="text", revision=17, digest="sha256:0", prompts=prompts)


@given(scores())
def test_scores_come_back_exactly(answer):
    assert decode_logprobs(encode_logprobs(answer)) == answer


@given(generations())
def test_generations_come_back_exactly(answer):
    assert decode_generated(encode_generated(answer)) == answer


def scored(token_ids, logprobs, **more):
    return ScoredSequence(token_ids=token_ids, logprobs=logprobs, prompt_tokens=7, **more)


def test_the_arrays_have_the_documented_names_and_types():
    tops = {"top_ids": [[5, 6]], "top_logprobs": [[-0.5, -2.0]]}
    sequences = [scored([5], [-0.5], **tops), scored([8], [-0.25], **tops)]
    both = [AdapterScores(adapter=a, revision=3, digest="d", sequences=sequences) for a in ("image", "base")]
    arrays = load(encode_logprobs(LogprobsResponse(adapters=both)))
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
        "offsets": ("int64", (3,)),
        "token_ids": ("int32", (2,)),
        **{f"{a}.logprobs": ("float32", (2,)) for a in (0, 1)},
        **{f"{a}.top_ids": ("int32", (2, 2)) for a in (0, 1)},
        **{f"{a}.top_logprobs": ("float32", (2, 2)) for a in (0, 1)},
    }


@given(st.binary(max_size=64))
def test_any_other_bytes_are_refused(body):
    with pytest.raises(WireError, match="/logprobs"):
        decode_logprobs(body)
    with pytest.raises(WireError, match="/generate"):
        decode_generated(body)


@given(scores(), st.data())
def test_an_answer_cut_off_is_refused(answer, data):
    body = encode_logprobs(answer)
    with pytest.raises(WireError):
        decode_logprobs(body[: data.draw(st.integers(0, len(body) - 1))])


def test_scores_without_their_numbers_are_refused():
    rest = {"adapters": [{"adapter": "a", "revision": 1, "digest": "d", "top": [False]}], "prompt_tokens": [1]}
    arrays = {"offsets": np.array([0, 2], np.int64), "token_ids": np.array([4, 5], np.int32)}
    with pytest.raises(WireError):
        decode_logprobs(save(arrays, {"answer": json.dumps(rest)}))
    assert decode_logprobs(save(arrays | {"0.logprobs": np.zeros(2, np.float32)}, {"answer": json.dumps(rest)}))


@pytest.mark.parametrize("offsets", [[0, 2, 1], [1, 2], [0, 1], [0, 9], [-1, 2], []])
def test_offsets_that_do_not_fit_are_refused(offsets):
    rest = {"adapters": [{"adapter": "a", "revision": 1, "digest": "d", "top": [False]}], "prompt_tokens": [1]}
    arrays = {
        "offsets": np.array(offsets, np.int64),
        "token_ids": np.array([4, 5], np.int32),
        "0.logprobs": np.zeros(2, np.float32),
    }
    with pytest.raises(WireError):
        decode_logprobs(save(arrays, {"answer": json.dumps(rest)}))


# ---- straight from arrays ----


def of_chance(tokens, width):
    chance = np.random.default_rng(tokens)
    return ScoredArrays(
        chance.normal(size=tokens).astype(np.float32),
        chance.integers(0, 99, (tokens, width)).astype(np.int32),
        chance.normal(size=(tokens, width)).astype(np.float32),
    )


@pytest.mark.parametrize("width", [0, 3])
def test_scores_straight_from_arrays_are_the_same_bytes(width):
    heads = [{"adapter": name, "revision": 3, "digest": "d"} for name in ("text", "base")]
    completions = [(1, 2, 3), (4,)]
    of_model = [of_chance(len(ids), width) for ids in completions]
    sequences = [
        ScoredSequence(
            token_ids=list(ids),
            logprobs=rows.logprobs_C.tolist(),
            prompt_tokens=7,
            **({"top_ids": rows.top_ids_Ck.tolist(), "top_logprobs": rows.top_logprobs_Ck.tolist()} if width else {}),
        )
        for ids, rows in zip(completions, of_model, strict=True)
    ]
    answer = LogprobsResponse(adapters=[AdapterScores(**head, sequences=sequences) for head in heads])
    packed = pack_scores(heads, completions, [7, 7], [of_model, of_model])
    assert packed == encode_logprobs(answer)
    assert packed is not None
    for scored in decode_scores(packed):
        for rows, arrays in zip(of_model, scored, strict=True):
            assert arrays.logprobs_C.tobytes() == rows.logprobs_C.tobytes()
            assert arrays.top_ids_Ck.tolist() == rows.top_ids_Ck.tolist()
            assert arrays.top_logprobs_Ck.tobytes() == rows.top_logprobs_Ck.tobytes()


def test_rows_of_different_widths_are_left_to_lists():
    assert pack_scores([{}], [(1,), (2,)], [7, 7], [[of_chance(1, 2), of_chance(1, 3)]]) is None


@given(scores(), st.binary(max_size=3), st.integers(0, 10**6))
def test_damaged_arrays_of_scores_are_one_error(answer, noise, at):
    body = encode_logprobs(answer)
    damaged = body[: at % len(body)] + noise + body[at % len(body) + len(noise) :]
    with suppress(WireError):
        decode_scores(damaged)
