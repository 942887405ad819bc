"""`/runs/{run}/merged-adapter/serve`: a run's merge, served from its folder as one more adapter."""

from fastapi import APIRouter

from service import views
from service.http.problems import ProblemError
from service.routes.history import Files, known
from service.routes.runs import Run
from service.state import State

router = APIRouter(tags=["adapters"])


@router.post("/runs/{run}/merged-adapter/serve")
async def serve(run: Run, body: views.ServeRequest, files: Files, state: State) -> views.ServeResponse:
    """Serve the merge of a finished run under a name, until the service ends: as `coevo serve --extra` does."""
    await known(files, run)
    # From the run's folder alone: a caller names no path.
    paths = list(files.merged_adapter().values())
    if not paths:
        raise ProblemError("not-found", 404, f"{run} has no merge yet; coevo run makes it after the last step")
    return views.ServeResponse(name=body.name, digest=await state.publisher.serve(body.name, paths[0].parent))
