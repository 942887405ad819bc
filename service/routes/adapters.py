"""`/adapters`: what is served, and the one way in which a revision comes to be."""

import re
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from starlette.responses import FileResponse, JSONResponse, Response
from structlog.contextvars import bind_contextvars

from adapters.manifest import ADAPTER_FILES, MANIFEST, OPTIMISER, Manifest
from adapters.names import Ref
from service import schemas
from service.http.multipart import read_parts, read_text
from service.http.problems import ProblemError
from service.inputs import InputError
from service.publishing.decisions import META_BYTES, Published, Upload, parse_meta
from service.state import ServiceState, State
from trainer.queue.tokens import MAX_TOKEN

router = APIRouter(tags=["adapters"])

# As `adapters.names` has them; here for the schema, and for an answer before anything is looked up.
Branch = Annotated[str, PathParameter(pattern=r"^[a-z][a-z0-9_-]{0,47}$")]
Revision = Annotated[int, PathParameter(ge=0, le=999_999_999)]
FIELDS = ("parent", "token", "job", "base", "meta")

# The route reads its parts as they come, so FastAPI does not know of them.
_FILE = {"type": "string", "format": "binary"}
_PUBLISH_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [*ADAPTER_FILES],
                    "properties": {
                        **dict.fromkeys((*ADAPTER_FILES, OPTIMISER), _FILE),
                        "parent": {"type": "integer", "minimum": 0, "description": "the head, where it is left out"},
                        "token": {"type": "integer", "minimum": 0, "description": "of the lease it was made under"},
                        "job": {"type": "string"},
                        "base": {"type": "string", "description": "the digest of the base it was trained on"},
                        "meta": {"type": "string", "description": "a JSON object that the manifest keeps"},
                    },
                },
                "example": {"parent": 0, "meta": '{"from": "TRL"}', **{name: f"@{name}" for name in ADAPTER_FILES}},
            }
        },
    }
}


@router.get("/adapters")
async def adapters(state: State) -> schemas.AdaptersResponse:
    """The base, every branch with its head, and the limits."""
    engine, media = state.settings.engine, state.settings.media
    pixels = state.decoder.pixels
    return schemas.AdaptersResponse(
        base=schemas.BaseInfo(name=state.settings.base, digest=state.store.base),
        branches={name: _branch(state, name) for name in sorted(state.registry.heads)},
        extra=sorted(state.registry.extras),
        limits=schemas.LimitsInfo(
            rank=engine.max_lora_rank,
            max_model_len=engine.max_model_len,
            top_k=engine.top_k,
            body_bytes=state.settings.body_bytes,
            request_timeout_s=state.settings.request_timeout_s,
        ),
        # Pixel bounds as they are and not as they were set: those left out are the base's own.
        media=schemas.MediaInfo(
            max_images=media.max_images,
            max_videos=media.max_videos,
            image_min_pixels=pixels.images.min_pixels,
            image_max_pixels=pixels.images.max_pixels,
            video_min_pixels=pixels.videos.min_pixels,
            video_max_pixels=pixels.videos.max_pixels,
            **pixels.sampling.model_dump(),
        ),
        engine=schemas.EngineInfo(version=state.engine.version, dtype=state.engine.dtype),
    )


def _branch(state: ServiceState, name: str) -> schemas.BranchInfo:
    head = state.registry.heads[name]
    revisions = state.store.branch(name).live
    return schemas.BranchInfo(head=head, digest=revisions[head].digest, revisions=sorted(revisions))


@router.get("/adapters/{branch}")
async def branch(branch: Branch, state: State) -> schemas.BranchInfo:
    """A branch: its head and its revisions."""
    state.registry.find(Ref(branch))
    return _branch(state, branch)


@router.get("/adapters/{branch}/{revision}")
async def revision(branch: Branch, revision: Revision, state: State) -> Manifest:
    """The manifest of a revision."""
    return state.registry.find(Ref(branch, revision))


@router.get("/adapters/{branch}/{revision}/{file}", response_class=FileResponse)
async def file(branch: Branch, revision: Revision, file: str, state: State) -> Response:
    """A file of a revision."""
    manifest = state.registry.find(Ref(branch, revision))
    if file != MANIFEST and file not in manifest.files:
        names = ", ".join([*manifest.files, MANIFEST])
        raise ProblemError("not-found", 404, f"{branch}@{revision} has no such file; it has {names}")
    path: Path = state.store.folder(Ref(branch, revision)) / file
    if not path.exists():  # of a live revision only the moments may be gone
        raise ProblemError("not-found", 404, f"{branch}@{revision} has no {file} any more; newer revisions have")
    return FileResponse(path, media_type="application/octet-stream")


@router.put("/adapters/{branch}/{revision}", status_code=201, openapi_extra=_PUBLISH_BODY)
async def publish(branch: Branch, revision: Revision, request: Request, state: State) -> Response:
    """Publish a revision: files `adapter_model.safetensors`, `adapter_config.json`, optional `optimizer.safetensors`;
    fields, all optional: `parent` (the head where it is left out), `token`, `job`, `base`, `meta` (JSON). The same
    files again are answered 200."""
    bind_contextvars(branch=branch, revision=revision)
    async with state.publisher.stage() as stage:
        fields: dict[str, str] = {}
        async for part in read_parts(request.headers.get("content-type", ""), request.stream()):
            if part.name in FIELDS:
                fields[part.name] = await read_text(part, META_BYTES)
            else:  # the stage knows which files there are
                await stage.receive(part.name, part.chunks)
        upload = Upload(
            ref=Ref(branch, revision),
            parent=_number(fields, "parent"),
            token=_number(fields, "token", MAX_TOKEN),
            job=fields.get("job"),
            base=fields.get("base"),
            meta=parse_meta(fields["meta"]) if "meta" in fields else None,
        )
        published = await state.publisher.publish(stage, upload)
    if published.is_new:
        state.metrics.count_publish(branch, published.canary_difference)
    return _published(published)


def _number(fields: dict[str, str], name: str, most: int = 999_999_999) -> int | None:
    if name not in fields:
        return None
    if not re.fullmatch(r"[0-9]{1,16}", fields[name], re.ASCII) or int(fields[name]) > most:
        raise InputError(name, f"no number of at most {most}; leave it out, or send a number")
    return int(fields[name])


@router.post("/adapters/{branch}", status_code=201)
async def fork(branch: Branch, body: schemas.ForkRequest, state: State) -> Response:
    """Begin a branch at the base or at a revision of another."""
    return _published(await state.publisher.fork(branch, body.from_, moments=body.moments))


@router.post("/adapters/{branch}/head", status_code=201)
async def go_back(branch: Branch, body: schemas.ReturnRequest, state: State) -> Response:
    """Make a mistaken head good: the next revision has the files of an earlier one. Refused while somebody has the
    lease of the branch. The mistaken revision stays under its number until it is deleted."""
    return _published(await state.publisher.go_back(branch, body.to, body.head, body.token))


def _published(published: Published) -> Response:
    return JSONResponse(published.manifest.model_dump(mode="json"), 201 if published.is_new else 200)


@router.delete("/adapters/{branch}/{revision}", status_code=204)
async def retire(branch: Branch, revision: Revision, state: State) -> Response:
    """Delete a revision that is not the head. Requests that use it end on it."""
    await state.publisher.retire(Ref(branch, revision))
    return Response(status_code=204)
