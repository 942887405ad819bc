"""What the page reads over HTTP, beside `schemas`: slices of a run, never the whole of it."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from adapters.manifest import Manifest
from service.schemas import Body, RecordedCompletion


class PageInfo(Body):
    """What the page needs to know before it draws."""

    is_read_only: bool
    """No engine behind it: a folder that is looked at."""
    colours: dict[str, dict[str, str]]
    """Of each run's branches, by run and branch."""
    phases: dict[str, str]
    dashes: list[list[int]]
    neutral: str


class BranchSlice(Body):
    steps: list[int]
    """The last step of each point."""
    values: dict[str, list[float | None]]
    """By key; null where a step has no such number."""


class SeriesResponse(Body):
    keys: list[str]
    """Every key there is, whichever were asked for."""
    branches: dict[str, BranchSlice]


class LaneBar(Body):
    begin: float
    """Seconds since the run's first event."""
    end: float
    phase: str
    first: int
    last: int


class Lane(Body):
    bars: list[LaneBar]
    totals: dict[str, float]
    """Seconds of all steps by what they went into: gather, learn, publish, waiting."""


class LanesResponse(Body):
    lanes: dict[str, Lane]


class NotesResponse(Body):
    notes: list[dict[str, Any]]
    """Events as the trainer told them, with their `number`."""
    next: int | None
    """`after` of the next page; null at the end."""


class AlarmInfo(Body):
    level: Literal["error", "warning"]
    where: str
    text: str
    remedy: str
    retry: str | None
    """The branch whose dead job `/jobs/BRANCH/retry` tries again."""


class AlarmsResponse(Body):
    alarms: list[AlarmInfo]


class CompletionRow(Body):
    """A completion without its tokens."""

    part: str
    capability: str | None
    group: int
    """Its group's number within the part; the number of the completion within the group follows."""
    completion: int
    prompt_id: str
    question: str
    """Its beginning."""
    text: str
    """Its beginning."""
    reward: float | None
    advantage: float | None
    """The mean over its tokens; null: it left its group."""
    delta: float | None
    """Teacher minus student, the mean over its tokens."""
    tokens: int
    is_cut_off: bool
    why: str | None
    is_decided: bool
    """Every completion of its group has the same reward: nothing to learn from."""


class CompletionsResponse(Body):
    parts: dict[str, int]
    """How many groups each part has."""
    metrics: dict[str, float]
    """The step's."""
    total: int
    rows: list[CompletionRow]
    next: int | None
    """`after` of the next page; null at the end."""


class TokenisedCompletion(RecordedCompletion):
    pieces: list[str] | None
    """The text of each token; null where the base's tokenizer is not at hand."""


class GroupResponse(Body):
    part: str
    capability: str | None
    group: int
    groups: int
    """Of the part."""
    prompt_id: str
    question: str
    answer: str
    media: list[str]
    prompt_ids: list[int]
    messages: list[dict[str, Any]]
    """The prompt as `/logprobs` takes it; empty in a record of an older trainer."""
    completions: list[TokenisedCompletion]


class PromptPlace(Body):
    """Where a prompt was asked before."""

    step: int
    part: str
    group: int


class RevisionsResponse(Body):
    revisions: list[Manifest]
    retired: list[str]
    """Those of the page whose files are gone."""
    next: str | None
    """`after` of the next page; null at the end."""


class ResultsResponse(Body):
    """What a finished run ended with; null where it has not."""

    results: dict[str, Any] | None
    """`results.json`: accuracies with their intervals."""
    merge: dict[str, Any] | None
    """`merge.json`: weights, cosines of the branches' deltas, norms by layer."""
    scales: list[dict[str, float | None]]
    """The validation curve of the merge's scale, if one was measured."""
    adapter: dict[str, int]
    """Files of the merge as one adapter and their bytes; `/runs/RUN/merged-adapter/FILE` has them."""
    folder: str | None
    """What `coevo run` made, as commands on the service's machine name it."""


class ServeRequest(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "merged"}]})

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,47}$")


class ServeResponse(Body):
    name: str
    digest: str


class DeadJobInfo(Body):
    branch: str
    job: str
    error: str


class JobsResponse(Body):
    dead: list[DeadJobInfo]


class RetryRequest(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"job": "run-1:text:0"}]})

    job: str
    """The dead job, as `/jobs` names it."""


class LogInfo(Body):
    name: str
    bytes: int


class LogsResponse(Body):
    logs: list[LogInfo]


class LogResponse(Body):
    name: str
    lines: list[str]
    next: int
    """`after` of what is written later."""
