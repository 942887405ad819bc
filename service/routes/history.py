"""`/runs/{run}/...`: what a page shows of a run, in slices: curves, lanes, notes, alarms, results; and its revisions.

They read files alone, so they are mounted without an engine, too (`service.look`).
"""

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import FileResponse, Response

from adapters.names import Ref
from service import views
from service.alarms import alarms
from service.files import RunFiles
from service.http.problems import ProblemError
from service.inputs import InputError
from service.routes.runs import Run
from service.schemas import RunInfo
from service.series import Series

router = APIRouter(tags=["runs"])

MOST_POINTS = 5000
"""Points of a curve in one answer; a screen has fewer."""


async def files_of(request: Request) -> RunFiles:
    return request.app.state.files


Files = Annotated[RunFiles, Depends(files_of)]
After = Annotated[int, Query(ge=0, le=2**53)]
Points = Annotated[int, Query(ge=1, le=MOST_POINTS)]


async def known(files: RunFiles, run: str) -> tuple[RunInfo, Series]:
    info = files.runs.info(run)
    if info is None:
        raise ProblemError("unknown-run", 404, f"there is no run {run}; /runs lists them")
    return info, await asyncio.to_thread(files.series, run)


@router.get("/runs/{run}/series")
async def series(
    run: Run,
    files: Files,
    key: Annotated[list[str], Query(max_length=64)] = [],  # noqa: B006  # FastAPI copies it
    branch: Annotated[list[str], Query(max_length=64)] = [],  # noqa: B006
    first: After = 0,
    last: After = 2**53,
    points: Points = 1000,
) -> views.SeriesResponse:
    """Metrics by step: of all branches or some, between two steps, as means where there are more steps than points.
    The keys of the answer are all there are; `seconds/...` is where the time of a step went."""
    _, columns = await known(files, run)
    names = [name for name in columns.branches if not branch or name in branch]

    def read() -> dict[str, views.BranchSlice]:
        slices = {name: columns.slice(name, key, first, last, points) for name in names}
        return {name: views.BranchSlice(steps=part.steps, values=part.values) for name, part in slices.items()}

    return views.SeriesResponse(keys=columns.keys(), branches=await asyncio.to_thread(read))


@router.get("/runs/{run}/lanes")
async def lanes(run: Run, files: Files, points: Points = 1000) -> views.LanesResponse:
    """Who worked on what and when: stretches of one phase by branch, none shorter than a point.
    Between them is waiting."""
    _, columns = await known(files, run)

    def read() -> dict[str, views.Lane]:
        return {
            name: views.Lane(
                bars=[views.LaneBar(**asdict(bar)) for bar in columns.bars(name, points)], totals=columns.totals(name)
            )
            for name in columns.branches
        }

    return views.LanesResponse(lanes=await asyncio.to_thread(read))


@router.get("/runs/{run}/notes")
async def notes(
    run: Run,
    files: Files,
    kind: Annotated[list[str], Query(max_length=16)] = [],  # noqa: B006
    after: After = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 500,
) -> views.NotesResponse:
    """Events that are no steps, in their order, and steps' warnings: of some kinds (`overlap`, `accuracy`, `lease`,
    `failed`, `dead`, `waiting`, `rhythm`, `run`, `warning`), or of all."""
    _, columns = await known(files, run)
    # By number and not by place: what is told between two pages moves nothing.
    following = [note for note in columns.notes if note.number > after and (not kind or note.event.get("kind") in kind)]
    page = following[:limit]
    return views.NotesResponse(
        notes=[{"number": note.number, **note.event} for note in page],
        next=page[-1].number if len(following) > limit else None,
    )


@router.get("/runs/{run}/alarms")
async def run_alarms(run: Run, files: Files) -> views.AlarmsResponse:
    """What deserves a look now, and what to do about it."""
    info, columns = await known(files, run)
    current = await asyncio.to_thread(alarms, info, columns, datetime.now(UTC))
    return views.AlarmsResponse(alarms=[views.AlarmInfo(**asdict(alarm)) for alarm in current])


@router.get("/runs/{run}/results")
async def results(run: Run, files: Files) -> views.ResultsResponse:
    """The accuracies and the merge of a run that `coevo run` has finished."""
    await known(files, run)
    tables, merge, scales = await asyncio.to_thread(files.results)
    adapter = {name: path.stat().st_size for name, path in files.merged_adapter().items()}
    folder = None if files.out is None else str(files.out)
    return views.ResultsResponse(results=tables, merge=merge, scales=scales, adapter=adapter, folder=folder)


@router.get("/runs/{run}/merged-adapter/{file}", response_class=FileResponse)
async def merged_adapter(run: Run, file: str, files: Files) -> Response:
    """A file of the merge as one adapter, which PEFT and vLLM load."""
    await known(files, run)
    path = files.merged_adapter().get(file)
    if path is None:
        raise ProblemError("not-found", 404, f"{run} has no such file of its merge; /runs/{run}/results names them")
    return FileResponse(path, media_type="application/octet-stream")


@router.get("/revisions")
async def revisions(
    files: Files, after: str = "", limit: Annotated[int, Query(ge=1, le=1000)] = 500
) -> views.RevisionsResponse:
    """The manifests of all revisions by branch and number, retired ones too; `after` is a `branch@revision`."""
    begin = Ref.parse(after) if after else None
    if begin is not None and begin.revision is None:  # None is in no order with numbers
        raise InputError("after", f"{after} names no revision; take BRANCH@REVISION, such as image@17")

    def read() -> views.RevisionsResponse:
        # Names of folders are cheap; manifests are opened for one page alone.
        refs = [ref for ref in files.refs() if begin is None or ref > begin]
        page = refs[:limit]
        manifests = [manifest for ref in page if (manifest := files.manifest(ref)) is not None]
        retired = [str(ref) for ref in page if files.is_retired(ref)]
        following = str(page[-1]) if len(refs) > limit else None
        return views.RevisionsResponse(revisions=manifests, retired=retired, next=following)

    return await asyncio.to_thread(read)


@router.get("/logs")
async def logs(files: Files) -> views.LogsResponse:
    """The logs of the processes that `coevo run` started."""
    paths = await asyncio.to_thread(lambda: list(files.logs()))
    return views.LogsResponse(logs=[views.LogInfo(name=path.name, bytes=path.stat().st_size) for path in paths])


@router.get("/logs/{name}")
async def log(name: str, files: Files, after: Annotated[int | None, Query(ge=0, le=2**53)] = None) -> views.LogResponse:
    """Whole lines of a log from a byte on; without `after` its end."""
    read = await asyncio.to_thread(files.log, name, after)
    if read is None:
        raise ProblemError("not-found", 404, "there is no such log; /logs lists them")
    lines, end = read
    return views.LogResponse(name=name, lines=lines, next=end)
