"""What travels over HTTP: one frozen model for each request and each answer, shared with the client.

Arrays of an answer may travel as one safetensors body instead (`Accept: application/vnd.safetensors`, see `wire`).
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

SAFETENSORS = "application/vnd.safetensors"

# Publisher and engine both score these when a revision is published, to see that they mean the same model. Ids and not
# a text, so that it needs no tokenizer; every vocabulary has these. In most they are the signs of ASCII in order, which
# a language model expects: of a text that it finds absurd, bfloat16 rounds the log-probabilities by a nat and more.
CANARY_PROMPT, CANARY_COMPLETION = tuple(range(32, 40)), tuple(range(40, 56))

Base64 = Annotated[str, Field(description="the bytes of a file, base64; or sha256:HEX of one that was PUT to /media")]
TokenId = Annotated[int, Field(ge=0)]


def _encodable(text: str) -> str:
    text.encode()  # half a surrogate is no text, and no tokenizer takes it; UnicodeEncodeError is a ValueError
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class Body(BaseModel):
    """Closed to unknown keys, so that a misspelt one is an error and not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class TextPart(Body):
    type: Literal["text"]
    text: Text


class MediaPart(Body):
    """Stands where the next image, or the next video, belongs."""

    type: Literal["image", "video"]


class Message(Body):
    role: Literal["system", "user", "assistant"]
    content: Text | list[TextPart | MediaPart]


class Chat(Body):
    """A prompt as messages: the chat template and the tokenizer of the base make ids of it."""

    messages: list[Message] = Field(min_length=1)


class Sequence(Body):
    """A prompt and what follows it."""

    prompt: list[TokenId] | Chat
    """Ids are unexpanded: one pad token for each image or video."""
    completion: list[TokenId] | Text
    """A text is tokenised alone, without an end mark."""
    images: list[Base64] = []
    videos: list[Base64] = []
    token_ids: list[list[TokenId]] | None = None
    """For each position of the completion the ids to score there, beside the completion's own."""


_QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "37+2*4?"}]}


class LogprobsRequest(Body):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"sequences": [{"prompt": _QUESTION, "completion": "plain2*4=8;37+8=45"}]}]}
    )

    sequences: list[Sequence] = Field(min_length=1)
    top_k: int = Field(default=0, ge=0)
    """How many of the likeliest tokens of each position to tell."""


class ScoredSequence(Body):
    """Log-probabilities of the completion's tokens only: raw, at temperature 1."""

    token_ids: list[int]
    logprobs: list[float]
    prompt_tokens: int
    """After expansion."""
    top_ids: list[list[int]] | None = None
    """The likeliest tokens, or the `token_ids` that were asked for."""
    top_logprobs: list[list[float]] | None = None


class AdapterScores(Body):
    adapter: str
    revision: int
    digest: str
    """The digest of the adapter's files; for `base`, of the base's."""
    sequences: list[ScoredSequence]


class LogprobsResponse(Body):
    adapters: list[AdapterScores]


class Prompt(Body):
    prompt: list[TokenId] | Chat
    images: list[Base64] = []
    videos: list[Base64] = []
    seed: int | None = Field(default=None, ge=0, lt=2**62)  # vLLM takes 64 signed bits, and adds n to it
    """The first completion's; the next ones take the numbers after it."""


class GenerateRequest(Body):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompts": [{"prompt": _QUESTION, "seed": 1}], "n": 2, "max_tokens": 40}]}
    )

    prompts: list[Prompt] = Field(min_length=1)
    n: int = Field(default=1, ge=1, le=1024)
    """Completions of each prompt."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    """Left out: as many as the model's length leaves room for."""
    logprobs: Annotated[int, Field(ge=0)] | None = 0
    """How many of the likeliest tokens to tell beside the sampled one's log-probability; null: not even that."""
    stop: list[Annotated[Text, Field(min_length=1)]] = []


class Completion(Body):
    token_ids: list[int]
    """With the end mark, if it was sampled."""
    logprobs: list[float]
    """Raw, at temperature 1, whatever the sampling temperature was. Empty where they were not asked for."""
    finish_reason: Literal["stop", "length"]
    top_ids: list[list[int]] | None = None
    top_logprobs: list[list[float]] | None = None


class Generated(Body):
    prompt_token_ids: list[int]
    """Expanded: exactly what the model saw, pad tokens of media included."""
    completions: list[Completion]


class GenerateResponse(Body):
    adapter: str
    revision: int
    digest: str
    prompts: list[Generated]


class BranchInfo(Body):
    head: int
    digest: str
    revisions: list[int]
    """Those that are kept."""


class BaseInfo(Body):
    name: str
    digest: str


class LimitsInfo(Body):
    rank: int
    max_model_len: int
    top_k: int
    body_bytes: int
    request_timeout_s: float
    """How long the engine may take for one request."""


class MediaInfo(Body):
    """What pixels the engine sees, under the names of a recipe's `media`."""

    max_images: int
    max_videos: int
    image_min_pixels: int
    image_max_pixels: int
    fps: float
    min_frames: int
    max_frames: int
    video_min_pixels: int
    video_max_pixels: int


class EngineInfo(Body):
    version: str
    dtype: str


class AdaptersResponse(Body):
    base: BaseInfo
    branches: dict[str, BranchInfo]
    extra: list[str] = []
    """Adapters of no store, which never change."""
    limits: LimitsInfo
    media: MediaInfo
    engine: EngineInfo


class ForkRequest(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"from": "base"}]})

    from_: str = Field(alias="from")
    """`base`, or `branch@revision`"""
    moments: bool = False
    """Whether the optimiser's moments go along; refused where they are kept no more."""


class ReturnRequest(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"to": 6, "head": 7}]})

    to: Annotated[int, Field(ge=0, le=999_999_999)]
    """The revision whose files the new head has."""
    head: Annotated[int, Field(ge=0, le=999_999_999)]
    """The head that is a mistake. Another one is refused: it came meanwhile."""
    token: Annotated[int, Field(ge=0)] | None = None
    """The token of the branch's lease, for who has it."""


class MediaResponse(Body):
    id: str
    """`sha256:HEX`"""


class RunBranch(Body):
    """How far a branch of a run has come."""

    head: int
    """The newest step that was told of; 0 before the first."""
    last: int | None = None
    """The last step of its plan."""
    reward: float | None = None
    """The newest step's, on the branch's own capabilities."""
    notice: str | None = None
    """What a person should know: that it earns no reward. None again when it does."""


class RunInfo(Body):
    id: str
    name: str
    """The name in its recipe."""
    state: str
    """`running` or `finished`."""
    branches: dict[str, RunBranch]
    num_events: int
    """The number of the newest event."""
    started: AwareDatetime
    """When the first event was written down, by the service's clock."""
    updated: AwareDatetime
    """And when the newest was."""


class RunsResponse(Body):
    runs: list[RunInfo]
    """The run that was heard of last comes first."""


class RecordedCompletion(Body):
    """A completion and what became of it: its reward, and for each token what the update saw."""

    text: str
    token_ids: list[int]
    logprobs: list[float]
    reward: float | None
    why: str | None
    """How the reward came to be, or why there is none."""
    is_cut_off: bool
    """It ended with its room, not by itself."""
    advantages: list[float] | None
    """None: it left its group."""
    delta: list[float] | None
    """The teacher's log-probability minus the student's."""


class RecordedGroup(Body):
    """A prompt with its completions."""

    prompt_id: str
    question: str
    answer: str
    media: list[str]
    prompt_token_ids: list[int]
    completions: list[RecordedCompletion]


class RecordedPart(Body):
    """Some prompts of one term of the loss."""

    name: str
    capability: str | None
    num_groups: int
    """All that it has."""
    first: int
    """The number of the first one here, counted from 0."""
    groups: list[RecordedGroup]


class StepRollouts(Body):
    """A page of a step's rollouts, for people to read."""

    run: str
    branch: str
    step: int
    parts: list[RecordedPart]
    metrics: dict[str, float]


class RolloutsIndex(Body):
    """The steps of a run whose rollouts are kept."""

    branches: dict[str, list[int]]


class RolloutsKept(Body):
    """What became of a step's rollouts."""

    removed: list[int]
    """The older steps of the branch whose rollouts went for them."""


class Problem(BaseModel):
    """RFC 9457. `type` is stable, `detail` is for people; more members may stand beside them."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    title: str
    status: int
    detail: str
