"""What decides whether an upload becomes a revision: its words, the branch's head, the fence and the canary.

Functions without state. Left out: what an adapter must be (`adapters.validate`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from pydantic import JsonValue, TypeAdapter, ValidationError

from adapters.errors import UserError
from adapters.manifest import Manifest
from adapters.names import Ref
from adapters.precision import Dtype
from adapters.store import StoredBranch

MAX_CANARY_DIFFERENCE: dict[Dtype, float] = {"float32": 0.1, "bfloat16": 0.25}
"""In nats a token, on average. In bfloat16 engine and trainer of a pretrained model differ by 0.08 as it is."""
META_BYTES = 2**16  # the most of any text field of an upload; these are held in memory, files are not

Kind = Literal[
    "invalid",  # 422
    "other-base",  # 422
    "too-large",  # 413
    "canary",  # 422
    "revision-exists",  # 409
    "stale-parent",  # 409
    "fenced",  # 409
    "branch-exists",  # 409
    "head-revision",  # 409
]


class PublishRefusedError(UserError):
    """An upload that becomes no revision. `members` stand in the answer beside the words."""

    def __init__(self, kind: Kind, message: str, **members: JsonValue) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.members = members


@dataclass(frozen=True, slots=True)
class Upload:
    """What the publisher says of the files."""

    ref: Ref
    parent: int | None = None
    """The revision that it continues; None: whichever is the head when it is decided."""
    token: int | None = None
    job: str | None = None
    base: str | None = None
    """The digest of the base that it was trained on; None: it does not say."""
    meta: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True, slots=True)
class Published:
    manifest: Manifest
    is_new: bool
    """False: it was there already, with the same files (200 and not 201)."""
    canary_difference: float | None = None
    """The mean, where the publisher sent its own numbers; worth a metric."""


def parse_meta(text: str) -> dict[str, JsonValue]:
    """The form field `meta`: a JSON object of bearable size and depth, with finite numbers."""
    if len(text) > META_BYTES:
        raise PublishRefusedError("too-large", f"meta: {len(text)} characters, {META_BYTES} are allowed")
    try:
        meta = TypeAdapter(dict[str, JsonValue]).validate_json(text)
    except ValidationError:
        raise PublishRefusedError("invalid", "meta: no JSON object") from None
    if _has_infinity(meta):  # Python writes such a number into JSON, and no other reader takes the manifest then
        raise PublishRefusedError("invalid", "meta: holds a number that is not finite; leave it out or write null")
    return meta


def decide(
    branch: StoredBranch, revision: int, digest: str, parent: int | None, *, is_current: bool
) -> PublishRefusedError | Manifest | None:
    """The decision of step 2: why not, the manifest that is there already, or None: go on.

    A branch that nobody has heard of begins at the base, so its head is 0.
    """
    head = max(branch.live, default=0)
    known = branch.manifest(revision)
    # Before the fence: a publisher whose lease ended after the commit is told that its revision is there.
    if known is not None and known.digest == digest:
        return known
    if known is not None:
        return PublishRefusedError(
            "revision-exists", f"revision {revision} is there with other files; the head is {head}", head=head
        )
    if parent not in (None, head) or revision != head + 1:
        upload = f"revision {revision}" if parent is None else f"revision {revision} on {parent}"
        remedy = f"publish {head + 1} on {head}"
        return PublishRefusedError(
            "stale-parent", f"{upload} does not continue the head, which is {head}; {remedy}", head=head
        )
    if not is_current:
        return PublishRefusedError(
            "fenced", "the token is not that of the branch's lease; the work has gone to another", head=head
        )
    return None


def decide_return(
    branch: StoredBranch, to: Ref, head: int, *, is_current: bool
) -> PublishRefusedError | Manifest | None:
    """Whether the branch may go back from this head to an earlier revision; answered as `decide` does."""
    known, now = branch.manifest(head + 1), max(branch.live, default=0)
    if known is not None and known.origin == str(to):  # the first try was made
        return known
    if now != head:
        return PublishRefusedError(
            "stale-parent", f"the head is {now} and not {head}; look at that one first", head=now
        )
    if to.revision is None or to.revision >= head:
        return PublishRefusedError("invalid", f"{to} does not lie before the head, which is {head}")
    if not is_current:
        return PublishRefusedError(
            "fenced", f"somebody works on {to.branch}, and continues {head}; stop that first", head=head
        )
    return None


def canary_difference(engine_logprobs: Sequence[float], meta_canary: JsonValue, dtype: Dtype) -> float | None:
    """The mean between the engine's numbers and the publisher's, who may have sent none. Refused above the limit."""
    if not is_numbers(list(engine_logprobs)):
        raise PublishRefusedError("canary", "the engine's log-probabilities are not finite with this adapter")
    if meta_canary is None:
        return None
    logprobs = cast(list[float], meta_canary)  # `_check` has seen that it is
    tokens = len(engine_logprobs)
    if len(logprobs) != tokens:
        raise PublishRefusedError("canary", f"meta.canary has {len(logprobs)} numbers, the canary has {tokens} tokens")
    # The mean and not the largest: in bfloat16 one token of text that the model finds absurd can differ by 0.1 alone.
    difference = sum(abs(a - b) for a, b in zip(engine_logprobs, logprobs, strict=True)) / tokens
    if difference > MAX_CANARY_DIFFERENCE[dtype]:
        raise PublishRefusedError(
            "canary",
            f"the engine's log-probabilities differ from meta.canary by {difference:.3g} on average, at most "
            f"{MAX_CANARY_DIFFERENCE[dtype]} is allowed: it is another model than the publisher's",
            difference=difference,
        )
    return difference


def is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int | float) and not isinstance(item, bool) and abs(item) < math.inf
        for item in cast(list[object], value)
    )


def _has_infinity(value: JsonValue) -> bool:
    """Or a NaN."""
    if isinstance(value, dict):
        return any(map(_has_infinity, value.values()))
    if isinstance(value, list):
        return any(map(_has_infinity, value))
    return isinstance(value, float) and not math.isfinite(value)
