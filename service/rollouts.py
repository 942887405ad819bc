"""A step's record: its rollouts as one safetensors file, written and read a prompt at a time.

    PART/N/notes         what is no array of prompt N, as JSON: `GroupNotes`
    PART/N/prompt_ids    [P]
    PART/N/ids           [T] the tokens of its completions, one after another; `notes` says where to cut
    PART/N/logprobs      [T] and so on: `TOKEN_ARRAYS`, of those completions that have them

`step` in the metadata is the `RecordHead`. Any reader of safetensors opens such a file. It is written here piece by
piece all the same, for the library's own writer wants all of it in memory, and read without mapping it, so that a
process that reads a long record stays small.

Functions block: call them in threads. Axes: P tokens of a prompt, T of all its completions, C of one, k likeliest.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from adapters.errors import UserError
from adapters.tensor_files import header_bytes
from service.schemas import Body, RecordedCompletion, RecordedGroup, RecordedPart, StepRollouts

Arrays = Mapping[str, NDArray[Any]]

NOTES, PROMPT_IDS = "notes", "prompt_ids"
TOKEN_ARRAYS: Mapping[str, type[np.generic]] = {
    "ids": np.int32,
    "logprobs": np.float32,
    "advantages": np.float32,
    "delta": np.float32,
    "top_ids": np.int32,
    "top_logprobs": np.float32,
}
"""What a completion has for each of its tokens. The last two have k columns: a teacher's likeliest tokens."""

_DTYPES: Mapping[str, type[np.generic]] = {"U8": np.uint8, "I32": np.int32, "F32": np.float32}
_TAGS = {np.dtype(dtype): tag for tag, dtype in _DTYPES.items()}
_HEAD = "step"
_LENGTH_BYTES = 8
_HEADER_BYTES = 16 * 2**20
"""The longest header that is read. One of the paper's longest step has 0.6 MiB; JSON of far more stops a service."""


class RecordError(UserError):
    """A file that is no record, or a damaged one."""


class PartHead(Body):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    capability: str | None
    num_groups: int = Field(ge=0)


class RecordHead(Body):
    """What a record is of, and how many prompts each term of the loss has in it."""

    run: str
    branch: str
    step: int
    metrics: dict[str, float]
    parts: list[PartHead]

    @property
    def groups(self) -> Iterator[tuple[str, int]]:
        return ((part.name, number) for part in self.parts for number in range(part.num_groups))


class CompletionNotes(Body):
    text: str
    reward: float | None
    why: str | None
    is_cut_off: bool
    tokens: int = Field(ge=0)
    arrays: list[str]
    """Those of `TOKEN_ARRAYS` that it has."""
    beta: float | None = None
    """The weight of its teacher's likeliest tokens."""


class GroupNotes(Body):
    prompt_id: str
    question: str
    answer: str
    media: list[str]
    """Pictures before clips, each in the order of the prompt's marks."""
    messages: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    """As the chat template takes them."""
    completions: list[CompletionNotes]


# ---- one prompt ----


def pack_group(notes: GroupNotes, prompt_ids_P: NDArray[Any], rows: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    """The arrays of a prompt; `rows` are those of each completion, as its notes name them."""
    text = notes.model_dump_json().encode()
    text += b" " * (-len(text) % 4)  # what follows stays aligned, and JSON may end in blanks
    arrays: dict[str, NDArray[Any]] = {
        NOTES: np.frombuffer(text, np.uint8),
        PROMPT_IDS: prompt_ids_P.astype(np.int32),
    }
    for name, dtype in TOKEN_ARRAYS.items():
        # Of those that have it only: a completion that left its group has no advantages, which are not zeros.
        if parts := [row[name] for row in rows if name in row]:
            arrays[name] = np.concatenate(parts).astype(dtype)
    return arrays


class PackedGroup(NamedTuple):
    """A prompt as a record has it; `rows` are the arrays of each completion."""

    notes: GroupNotes
    rows: list[Arrays]


def unpack_group(arrays: Arrays) -> PackedGroup:
    notes = GroupNotes.model_validate_json(arrays[NOTES].tobytes())
    ends = dict.fromkeys(arrays, 0)  # one for each array: they have different completions in them
    rows: list[Arrays] = []
    for completion in notes.completions:
        row: dict[str, NDArray[Any]] = {}
        for name in completion.arrays:
            begin, ends[name] = ends[name], ends[name] + completion.tokens
            row[name] = arrays[name][begin : ends[name]]
        rows.append(row)
    if any(ends[name] != len(arrays[name]) for name in TOKEN_ARRAYS if name in arrays):
        raise RecordError("a prompt has other numbers of tokens than its notes say")
    return PackedGroup(notes, rows)


def recorded_group(arrays: Arrays) -> RecordedGroup:
    """A prompt for people to read. A teacher's likeliest tokens are left out: they are many."""
    notes, rows = unpack_group(arrays)
    return RecordedGroup(
        **notes.model_dump(exclude={"completions", "messages"}),
        prompt_token_ids=arrays[PROMPT_IDS].tolist(),
        completions=[
            RecordedCompletion(
                **completion.model_dump(include={"text", "reward", "why", "is_cut_off"}),
                token_ids=row["ids"].tolist(),
                logprobs=_values(row.get("logprobs")) or [],
                advantages=_values(row.get("advantages")),
                delta=_values(row.get("delta")),
            )
            for completion, row in zip(notes.completions, rows, strict=True)
        ],
    )


def _values(row_C: NDArray[Any] | None) -> list[float] | None:
    return None if row_C is None else row_C.tolist()


# ---- the file ----


def write_record(path: Path, head: RecordHead, arrays_of: Callable[[str, int], Arrays]) -> None:
    """`arrays_of` a part's prompt is asked twice: its sizes stand in the header, before the first array."""
    header: dict[str, Any] = {"__metadata__": {_HEAD: head.model_dump_json()}}
    end = 0
    for part, number in head.groups:
        for name, array in arrays_of(part, number).items():
            begin, end = end, end + array.nbytes
            span = {"dtype": _TAGS[array.dtype], "shape": array.shape, "data_offsets": [begin, end]}
            header[f"{part}/{number}/{name}"] = span
    with path.open("wb") as file:
        file.write(header_bytes(header))
        for part, number in head.groups:
            for array in arrays_of(part, number).values():
                file.write(np.ascontiguousarray(array).data)


class Record:
    """A record that can be read, a prompt at a time. RecordError: the file is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
                if length > _HEADER_BYTES:
                    raise RecordError(f"its header says that it has {length} bytes; at most {_HEADER_BYTES} are read")
                header = json.loads(file.read(length))
            self.head = RecordHead.model_validate_json(header.pop("__metadata__")[_HEAD])
            self._begin = _LENGTH_BYTES + length
            self._spans = cast(dict[str, dict[str, Any]], header)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _as_record_error(error) from None

    def arrays(self, part: str, number: int) -> dict[str, NDArray[Any]]:
        """The arrays of one prompt."""
        try:
            with self._path.open("rb") as file:
                return {
                    name: self._read(file, self._spans[key])
                    for name in (NOTES, PROMPT_IDS, *TOKEN_ARRAYS)
                    if (key := f"{part}/{number}/{name}") in self._spans
                }
        except (ValueError, KeyError, TypeError) as error:
            raise _as_record_error(error) from None

    def group(self, part: str, number: int) -> RecordedGroup:
        """One prompt for people to read."""
        return recorded_group(self.arrays(part, number))

    def page(self, part: str | None, first: int, count: int, most_tokens: float = math.inf) -> StepRollouts:
        """At most so many prompts of each part, or of one. A page ends before it has more tokens, but not before its
        first prompt."""
        heads = [head for head in self.head.parts if part in (None, head.name)]
        parts: list[RecordedPart] = []
        for head in heads:
            groups: list[RecordedGroup] = []
            tokens = 0
            for number in range(first, min(first + count, head.num_groups)):
                tokens += self.tokens(head.name, number)
                if groups and tokens > most_tokens / len(heads):
                    break
                groups.append(self.group(head.name, number))
            parts.append(RecordedPart(**head.model_dump(), first=first, groups=groups))
        return StepRollouts(**self.head.model_dump(exclude={"parts"}), parts=parts)

    def tokens(self, part: str, number: int) -> int:
        """How many a prompt's completions have together, without reading them."""
        return math.prod(self._spans[f"{part}/{number}/ids"]["shape"])

    def check(self) -> None:
        """RecordError unless all of it can be read, and nothing else is in the file."""
        try:
            ranges = sorted(cast(list[int], span["data_offsets"]) for span in self._spans.values())
            # Without holes, overlaps and rests: else a small file could stand for arrays of any size.
            bounds = [0, *(end for _, end in ranges)]
            if [begin for begin, _ in ranges] != bounds[:-1]:
                raise RecordError("its arrays do not follow each other")
            if bounds[-1] != self._path.stat().st_size - self._begin:
                raise RecordError("it is not as long as its header says")
            counted = sum(part.num_groups for part in self.head.parts)
            if counted > len(self._spans):  # before they are walked through: the number may be any
                raise RecordError(f"its header says that it has {counted} prompts")
            for part, number in self.head.groups:
                arrays = self.arrays(part, number)
                if not all("ids" in row for row in unpack_group(arrays).rows):
                    raise RecordError("a completion has no tokens")
                if not all(np.isfinite(array).all() for array in arrays.values()):
                    raise RecordError("numbers in it are not finite")
        except (ValueError, KeyError, TypeError) as error:
            raise _as_record_error(error) from None

    def _read(self, file: Any, span: dict[str, Any]) -> NDArray[Any]:
        begin, end = span["data_offsets"]
        dtype, shape = np.dtype(_DTYPES[span["dtype"]]), tuple(span["shape"])
        if math.prod(shape) * dtype.itemsize != end - begin:
            raise RecordError("an array is not as long as its shape says")
        # Read and not mapped: pages of a mapped file count as this process's memory while it reads on.
        file.seek(self._begin + begin)
        return np.frombuffer(file.read(end - begin), dtype).reshape(shape)


def _as_record_error(error: Exception) -> RecordError:
    if isinstance(error, RecordError):
        return error
    reason = f"{error.error_count()} places do not fit" if isinstance(error, ValidationError) else type(error).__name__
    return RecordError(f"not a step's record: {reason}")
