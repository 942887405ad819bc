"""Answers full of arrays as one safetensors body, and back without loss.

`offsets` [N+1] cuts everything flat into the N sequences (completions, in a `/generate` answer). For adapter number a
there are `a.logprobs`, and `a.top_ids` with `a.top_logprobs` where they were asked for: [tokens, K], or flat with
`a.top_offsets` [tokens+1] where positions differ in length. Completions may have neither. `token_ids` [tokens] are the
same for every adapter. What is no array lies as JSON under `answer` in the header's metadata.

Left out: log-probabilities that float32 cannot hold. The engine computes none.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    arrays: Arrays = {"offsets": _offsets(len(one.token_ids) for one in first), "token_ids": _flat_ids(first)}
    heads: list[dict[str, Any]] = []
    for number, scores in enumerate(answer.adapters):
        assert [one.token_ids for one in scores.sequences] == [one.token_ids for one in first]
        assert [one.prompt_tokens for one in scores.sequences] == [one.prompt_tokens for one in first]
        arrays |= _pack(f"{number}.", scores.sequences)
        heads.append(scores.model_dump(exclude={"sequences"}) | {"top": _with_top(scores.sequences)})
    rest = {"adapters": heads, "prompt_tokens": [one.prompt_tokens for one in first]}
    return save(arrays, {_ANSWER: json.dumps(rest)})


def decode_logprobs(body: bytes) -> LogprobsResponse:
    try:
        arrays, rest = _open(body)
        return LogprobsResponse(
            adapters=[_scores(arrays, number, head, rest["prompt_tokens"]) for number, head in _heads(rest)]
        )
    except (ValueError, KeyError, TypeError, IndexError, SafetensorError):
        raise WireError("not the safetensors body of a /logprobs answer") from None


def encode_generated(answer: GenerateResponse) -> bytes:
    completions = [one for prompt in answer.prompts for one in prompt.completions]
    with_logprobs = any(one.logprobs for one in completions)
    arrays: Arrays = {
        "offsets": _offsets(len(one.token_ids) for one in completions),
        "token_ids": _flat_ids(completions),
        "prompt_offsets": _offsets(len(prompt.prompt_token_ids) for prompt in answer.prompts),
        "prompt_token_ids": np.array([*chain(*(prompt.prompt_token_ids for prompt in answer.prompts))], np.int32),
        **_pack("", completions, with_logprobs=with_logprobs),
    }
    rest = answer.model_dump(exclude={"prompts"}) | {
        "completions": [len(prompt.completions) for prompt in answer.prompts],
        "finish_reasons": [one.finish_reason for one in completions],
        "top": _with_top(completions),
        "with_logprobs": with_logprobs,
    }
    return save(arrays, {_ANSWER: json.dumps(rest)})


def decode_generated(body: bytes) -> GenerateResponse:
    try:
        arrays, rest = _open(body)
        slices = _unpack(arrays, "", rest.pop("top"), with_logprobs=rest.pop("with_logprobs"))
        reasons = rest.pop("finish_reasons")
        completions = [Completion(**one, finish_reason=why) for one, why in zip(slices, reasons, strict=True)]
        groups = _cut(completions, _offsets(rest.pop("completions")))
        prompts = _cut(arrays["prompt_token_ids"].tolist(), arrays["prompt_offsets"])
        generated = [Generated(prompt_token_ids=a, completions=b) for a, b in zip(prompts, groups, strict=True)]
        return GenerateResponse(**rest, prompts=generated)
    except (ValueError, KeyError, TypeError, IndexError, SafetensorError):
        raise WireError("not the safetensors body of a /generate answer") from None


def _heads(rest: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    return enumerate(cast(list[dict[str, Any]], rest["adapters"]))


def _scores(arrays: Arrays, number: int, head: dict[str, Any], prompt_tokens: list[int]) -> AdapterScores:
    slices = _unpack(arrays, f"{number}.", head.pop("top"))
    sequences = [ScoredSequence(**one, prompt_tokens=n) for one, n in zip(slices, prompt_tokens, strict=True)]
    return AdapterScores(**head, sequences=sequences)


def _open(body: bytes) -> tuple[Arrays, dict[str, Any]]:
    """safetensors checks the header and the bounds of the arrays; its `load` does not hand out the metadata."""
    arrays = load(body)
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    return arrays, json.loads(header["__metadata__"][_ANSWER])


def _offsets(lengths: Iterable[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _flat_ids(sequences: Sequence[_Positions]) -> NDArray[np.int32]:
    return np.array([*chain(*(one.token_ids for one in sequences))], np.int32)


def _with_top(sequences: Sequence[_Positions]) -> list[bool]:
    return [one.top_ids is not None for one in sequences]


def _pack(prefix: str, sequences: Sequence[_Positions], *, with_logprobs: bool = True) -> Arrays:
    for one in sequences:
        assert len(one.logprobs) == (len(one.token_ids) if with_logprobs else 0)
        assert (one.top_ids is None) == (one.top_logprobs is None)
    logprobs = [*chain(*(one.logprobs for one in sequences))]
    packed: Arrays = {f"{prefix}logprobs": np.array(logprobs, np.float32)} if with_logprobs else {}
    if not any(_with_top(sequences)):
        return packed
    ids = [*chain(*(one.top_ids if one.top_ids is not None else [[]] * len(one.token_ids) for one in sequences))]
    rows = [*chain(*(one.top_logprobs or [[]] * len(one.token_ids) for one in sequences))]
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
    offsets = arrays["offsets"]
    ids = _cut(arrays["token_ids"].tolist(), offsets)
    logprobs = _cut(arrays[f"{prefix}logprobs"].tolist(), offsets) if with_logprobs else [[]] * len(ids)
    plain = [{"token_ids": a, "logprobs": b} for a, b in zip(ids, logprobs, strict=True)]
    if not any(with_top):
        return iter(plain)
    tops = zip(*(_cut(_rows(arrays, prefix, name), offsets) for name in ("top_ids", "top_logprobs")), strict=True)
    return (
        one | {"top_ids": a, "top_logprobs": b} if has else one
        for one, (a, b), has in zip(plain, tops, with_top, strict=True)
    )


def _rows(arrays: Arrays, prefix: str, name: str) -> list[list[Any]]:
    values = arrays[f"{prefix}{name}"].tolist()
    offsets = arrays.get(f"{prefix}top_offsets")
    return values if offsets is None else _cut(values, offsets)


def _cut(values: list[Any], offsets: NDArray[Any]) -> list[list[Any]]:
    """A cut that does not use every value is damage."""
    places = offsets.tolist()
    if places[0] != 0 or places[-1] != len(values) or places != sorted(places):
        raise WireError("offsets do not fit")
    return [values[start:end] for start, end in pairwise(places)]
