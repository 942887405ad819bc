"""`/jobs`: what the queue's workers gave up, and another try of it. Left out: queued jobs, which `coevo jobs` lists."""

from dataclasses import asdict

from fastapi import APIRouter

from adapters.names import shown
from service import views
from service.http.problems import ProblemError
from service.routes.adapters import Branch
from service.state import State

router = APIRouter(tags=["jobs"])


@router.get("/jobs")
async def dead_jobs(state: State) -> views.JobsResponse:
    """Jobs that failed for good: their branches stand still until they are retried. None where there is no queue."""
    jobs = [] if state.fence is None else await state.fence.dead()
    return views.JobsResponse(dead=[views.DeadJobInfo(**asdict(job)) for job in jobs])


@router.post("/jobs/{branch}/retry")
async def retry(branch: Branch, body: views.RetryRequest, state: State) -> views.JobsResponse:
    """Give a dead job all its attempts again; the answer has those that stay dead."""
    # By its name, too: who saw the error of one job does not mean the next one.
    if state.fence is None or not await state.fence.retry(branch, body.job):
        raise ProblemError("not-found", 404, f"{shown(body.job)} of {branch} has not failed for good; /jobs has those")
    return await dead_jobs(state)
