"""Answers full of arrays as one safetensors body, and back without loss.

`offsets` [N+1] cuts everything flat into the N sequences (completions, in a `/generate` answer). For adapter number a
there are `a.logprobs`, and `a.top_ids` with `a.top_logprobs` where they were asked for: [tokens, K], or flat with
`a.top_offsets` [tokens+1] where positions differ in length. Completions may have neither. `token_ids` [tokens] are the
same for every adapter. What is no array lies as JSON under `answer` in the header's metadata.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from service.schemas import (
    AdapterScores,
    Completion,
    Generated,
    GenerateResponse,
    LogprobsResponse,
    ScoredSequence,
)

_ANSWER = "answer"

Arrays = dict[str, NDArray[Any]]


class WireError(ValueError):
    """These bytes are no such answer."""


class _Positions(Protocol):
    """What scored sequences and completions share: something for each token."""

    @property
    def token_ids(self) -> list[int]: ...
    @property
    def logprobs(self) -> list[float]: ...
    @property
    def top_ids(self) -> list[list[int]] | None: ...
    @property
    def top_logprobs(self) -> list[list[float]] | None: ...


def encode_logprobs(answer: LogprobsResponse) -> bytes:
    """Every adapter scored the same sequences, so their ids travel once."""
    first = answer.adapters[0].sequences
    arrays: Arrays = {"offsets": _offsets(len(sequence.token_ids) for sequence in first), "token_ids": _flat_ids(first)}
    heads: list[dict[str, Any]] = []
    for number, scores in enumerate(answer.adapters):
        assert [sequence.token_ids for sequence in scores.sequences] == [sequence.token_ids for sequence in first]
        assert [s.prompt_tokens for s in scores.sequences] == [s.prompt_tokens for s in first]
        arrays |= _pack(f"{number}.", scores.sequences)
        heads.append(scores.model_dump(exclude={"sequences"}) | {"top": _with_top(scores.sequences)})
    rest = {"adapters": heads, "prompt_tokens": [sequence.prompt_tokens for sequence in first]}
    return save(arrays, {_ANSWER: json.dumps(rest)})


def decode_logprobs(body: bytes) -> LogprobsResponse:
    try:
        arrays, rest = _open(body)
        adapters: list[AdapterScores] = []
        for number, head in enumerate(cast(list[dict[str, Any]], rest["adapters"])):
            positions = zip(_unpack(arrays, f"{number}.", head.pop("top")), rest["prompt_tokens"], strict=True)
            sequences = [ScoredSequence(**members, prompt_tokens=tokens) for members, tokens in positions]
            adapters.append(AdapterScores(**head, sequences=sequences))
        return LogprobsResponse(adapters=adapters)
    except (ValueError, KeyError, TypeError, IndexError, SafetensorError):  # whatever a damaged body leads to
        raise WireError("not the safetensors body of a /logprobs answer") from None


@dataclass(frozen=True, slots=True, eq=False)
class ScoredArrays:
    """A sequence's scores as they travelled: [C], and [C, k] of the likeliest tokens; k is 0 where nobody asked."""

    logprobs_C: NDArray[np.float32]
    top_ids_Ck: NDArray[np.int32]
    top_logprobs_Ck: NDArray[np.float32]


def pack_scores(
    heads: Sequence[dict[str, Any]],
    completions: Sequence[Sequence[int]],
    prompt_tokens: Sequence[int],
    scores: Sequence[Sequence[ScoredArrays]],
) -> bytes | None:
    """What `encode_logprobs` makes, straight from arrays: `heads` and `scores` of each adapter. None where the
    sequences have different numbers of likeliest tokens."""
    widths = {rows.top_ids_Ck.shape[1:] for of_model in scores for rows in of_model}
    if len(widths) != 1:
        return None
    has_top = widths not in ({()}, {(0,)})
    arrays: Arrays = {
        "offsets": _offsets(map(len, completions)),
        "token_ids": np.fromiter(chain(*completions), np.int32),
    }
    for number, of_model in enumerate(scores):
        arrays[f"{number}.logprobs"] = np.concatenate([rows.logprobs_C for rows in of_model])
        if has_top:
            arrays[f"{number}.top_ids"] = np.concatenate([rows.top_ids_Ck for rows in of_model])
            arrays[f"{number}.top_logprobs"] = np.concatenate([rows.top_logprobs_Ck for rows in of_model])
    rest = {
        "adapters": [head | {"top": [has_top] * len(completions)} for head in heads],
        "prompt_tokens": list(prompt_tokens),
    }
    return save(arrays, {_ANSWER: json.dumps(rest)})


def decode_scores(body: bytes) -> list[list[ScoredArrays]]:
    """[adapter][sequence] of a /logprobs answer, for who wants arrays: lists of numbers take twenty times the room."""
    try:
        arrays, rest = _open(body)
        bounds = arrays["offsets"]
        scores: list[list[ScoredArrays]] = []
        for number in range(len(rest["adapters"])):
            logprobs = arrays[f"{number}.logprobs"]
            nothing = np.zeros((len(logprobs), 0))
            ids = arrays.get(f"{number}.top_ids", nothing.astype(np.int32))
            top = arrays.get(f"{number}.top_logprobs", nothing.astype(np.float32))
            if not len(logprobs) == len(ids) == len(top) == bounds[-1] or (bounds[0], ids.ndim) != (0, 2):
                raise WireError("offsets do not fit")
            pieces = pairwise(bounds.tolist())
            scores.append([ScoredArrays(logprobs[a:b], ids[a:b], top[a:b]) for a, b in pieces])
        return scores
    except (ValueError, KeyError, TypeError, IndexError, SafetensorError):
        raise WireError("not the safetensors body of a /logprobs answer") from None


def encode_generated(answer: GenerateResponse) -> bytes:
    completions = [completion for prompt in answer.prompts for completion in prompt.completions]
    with_logprobs = any(completion.logprobs for completion in completions)
    arrays: Arrays = {
        "offsets": _offsets(len(completion.token_ids) for completion in completions),
        "token_ids": _flat_ids(completions),
        "prompt_offsets": _offsets(len(prompt.prompt_token_ids) for prompt in answer.prompts),
        "prompt_token_ids": np.array([*chain(*(prompt.prompt_token_ids for prompt in answer.prompts))], np.int32),
        **_pack("", completions, with_logprobs=with_logprobs),
    }
    rest = answer.model_dump(exclude={"prompts"}) | {
        "completions": [len(prompt.completions) for prompt in answer.prompts],
        "finish_reasons": [completion.finish_reason for completion in completions],
        "top": _with_top(completions),
        "with_logprobs": with_logprobs,
    }
    return save(arrays, {_ANSWER: json.dumps(rest)})


def decode_generated(body: bytes) -> GenerateResponse:
    try:
        arrays, rest = _open(body)
        positions = _unpack(arrays, "", rest.pop("top"), with_logprobs=rest.pop("with_logprobs"))
        reasons = rest.pop("finish_reasons")
        completions = [
            Completion(**members, finish_reason=reason) for members, reason in zip(positions, reasons, strict=True)
        ]
        groups = _cut(completions, _offsets(rest.pop("completions")))
        prompts = _cut(arrays["prompt_token_ids"].tolist(), arrays["prompt_offsets"])
        generated = [Generated(prompt_token_ids=a, completions=b) for a, b in zip(prompts, groups, strict=True)]
        return GenerateResponse(**rest, prompts=generated)
    except (ValueError, KeyError, TypeError, IndexError, SafetensorError):
        raise WireError("not the safetensors body of a /generate answer") from None


def _open(body: bytes) -> tuple[Arrays, dict[str, Any]]:
    """safetensors checks the header and the bounds of the arrays; its `load` does not hand out the metadata."""
    arrays = load(body)
    # The format: the header's length in 8 bytes, little-endian, then the header as JSON.
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    return arrays, json.loads(header["__metadata__"][_ANSWER])


def _offsets(lengths: Iterable[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _flat_ids(sequences: Sequence[_Positions]) -> NDArray[np.int32]:
    return np.array([*chain(*(sequence.token_ids for sequence in sequences))], np.int32)


def _with_top(sequences: Sequence[_Positions]) -> list[bool]:
    return [sequence.top_ids is not None for sequence in sequences]


def _pack(prefix: str, sequences: Sequence[_Positions], *, with_logprobs: bool = True) -> Arrays:
    logprobs: list[float] = []
    ids: list[list[int]] = []
    rows: list[list[float]] = []
    for sequence in sequences:
        tokens = len(sequence.token_ids)
        assert len(sequence.logprobs) == (tokens if with_logprobs else 0)
        assert (sequence.top_ids is None) == (sequence.top_logprobs is None)
        logprobs += sequence.logprobs
        # Empty rows stand for a sequence without any, so that `offsets` cuts these arrays, too.
        ids += [[]] * tokens if sequence.top_ids is None else sequence.top_ids
        rows += [[]] * tokens if sequence.top_logprobs is None else sequence.top_logprobs
    packed: Arrays = {f"{prefix}logprobs": np.array(logprobs, np.float32)} if with_logprobs else {}
    if not any(_with_top(sequences)):
        return packed
    lengths = [len(row) for row in ids]
    assert lengths == [len(row) for row in rows]
    ragged = len(set(lengths)) > 1
    shape = (-1,) if ragged else (len(ids), lengths[0] if lengths else 0)
    packed[f"{prefix}top_ids"] = np.array([*chain(*ids)], np.int32).reshape(shape)
    packed[f"{prefix}top_logprobs"] = np.array([*chain(*rows)], np.float32).reshape(shape)
    if ragged:
        packed[f"{prefix}top_offsets"] = _offsets(lengths)
    return packed


def _unpack(
    arrays: Arrays, prefix: str, with_top: list[bool], *, with_logprobs: bool = True
) -> Iterator[dict[str, Any]]:
    """The members of each sequence, or completion, that stand in arrays."""

    def top(name: str) -> list[list[Any]]:
        values, offsets = arrays[f"{prefix}{name}"].tolist(), arrays.get(f"{prefix}top_offsets")
        return _cut(values if offsets is None else _cut(values, offsets), arrays["offsets"])

    ids = _cut(arrays["token_ids"].tolist(), arrays["offsets"])
    logprobs = _cut(arrays[f"{prefix}logprobs"].tolist(), arrays["offsets"]) if with_logprobs else [[]] * len(ids)
    # All None where nobody has any: such a body has no arrays for them.
    tops = zip(top("top_ids"), top("top_logprobs"), strict=True) if any(with_top) else [(None, None)] * len(ids)
    for a, b, (c, d), has_top in zip(ids, logprobs, tops, with_top, strict=True):
        yield {"token_ids": a, "logprobs": b} | ({"top_ids": c, "top_logprobs": d} if has_top else {})


def _cut(values: list[Any], offsets: NDArray[Any]) -> list[list[Any]]:
    bounds = offsets.tolist()
    # Slices forgive every offset, so look here: a cut that does not use every value is damage.
    if bounds[0] != 0 or bounds[-1] != len(values) or bounds != sorted(bounds):
        raise WireError("offsets do not fit")
    return [values[start:end] for start, end in pairwise(bounds)]
