"""`/adapters`: what is served, and the one way in which a revision comes to be."""

import re
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from starlette.responses import FileResponse, JSONResponse, Response

from adapters.manifest import MANIFEST, Manifest
from adapters.names import Ref
from service import schemas
from service.http.multipart import read_parts, read_text
from service.http.problems import ProblemError
from service.inputs import InputError
from service.publishing.publisher import META_BYTES, Published, Stage, Upload, parse_meta
from service.state import ServiceState

router = APIRouter(tags=["adapters"])

Branch = Annotated[str, PathParameter(pattern=r"^[a-z][a-z0-9_-]{0,47}$")]
Revision = Annotated[int, PathParameter(ge=0, le=999_999_999)]
FIELDS = ("parent", "token", "job", "base", "meta")


@router.get("/adapters")
async def adapters(request: Request) -> schemas.AdaptersResponse:
    """The base, every branch with its head, and the limits."""
    door: ServiceState = request.app.state.door
    numbers = door.settings.engine
    return schemas.AdaptersResponse(
        base=schemas.BaseInfo(name=door.base_name, digest=door.base_digest),
        branches={name: _branch(door, name) for name in sorted(door.registry.heads)},
        extra=sorted(door.registry.extras),
        limits=schemas.LimitsInfo(
            rank=numbers.max_lora_rank,
            max_model_len=numbers.max_model_len,
            top_k=numbers.top_k,
            body_bytes=door.settings.body_bytes,
        ),
        media=_media(door),
        engine=schemas.EngineInfo(version=door.engine.version, dtype=door.engine.settings.dtype),
    )


def _media(door: ServiceState) -> schemas.MediaInfo:
    numbers, pixels = door.settings.media, door.pixels
    return schemas.MediaInfo(
        max_images=numbers.max_images,
        max_videos=numbers.max_videos,
        image_min_pixels=pixels.images.min_pixels,
        image_max_pixels=pixels.images.max_pixels,
        video_min_pixels=pixels.videos.min_pixels,
        video_max_pixels=pixels.videos.max_pixels,
        fps=pixels.sampling.fps,
        min_frames=pixels.sampling.min_frames,
        max_frames=pixels.sampling.max_frames,
    )


def _branch(door: ServiceState, name: str) -> schemas.BranchInfo:
    head = door.registry.heads[name]
    kept = door.store.branch(name).live
    return schemas.BranchInfo(head=head, digest=kept[head].digest, revisions=sorted(kept))


@router.get("/adapters/{branch}")
async def branch(branch: Branch, request: Request) -> schemas.BranchInfo:
    """One branch."""
    door: ServiceState = request.app.state.door
    door.registry.find(Ref(branch))
    return _branch(door, branch)


@router.get("/adapters/{branch}/{revision}")
async def revision(branch: Branch, revision: Revision, request: Request) -> Manifest:
    """The manifest of a revision."""
    door: ServiceState = request.app.state.door
    return door.registry.find(Ref(branch, revision))


@router.get("/adapters/{branch}/{revision}/{file}", response_class=FileResponse)
async def file(branch: Branch, revision: Revision, file: str, request: Request) -> Response:
    """A file of a revision."""
    door: ServiceState = request.app.state.door
    manifest = door.registry.find(Ref(branch, revision))
    if file != MANIFEST and file not in manifest.files:
        names = ", ".join([*manifest.files, MANIFEST])
        raise ProblemError("not-found", 404, f"{branch}@{revision} has no such file; it has {names}")
    path: Path = door.store.folder(Ref(branch, revision)) / file
    return FileResponse(path, media_type="application/octet-stream")


@router.put("/adapters/{branch}/{revision}", status_code=201)
async def publish(branch: Branch, revision: Revision, request: Request) -> Response:
    """Publish a revision: files `adapter_model.safetensors`, `adapter_config.json`, optional `optimizer.safetensors`;
    fields `parent`, optional `token`, `job`, `base`, `meta` (JSON). The same files again are answered 200."""
    door: ServiceState = request.app.state.door
    async with door.publisher.stage() as stage:
        fields = await _receive(request, stage)
        published = await door.publisher.publish(stage, _upload(Ref(branch, revision), fields))
    if published.is_new:
        door.metrics.count_publish(branch, published.canary_difference)
    return _published(published)


async def _receive(request: Request, stage: Stage) -> dict[str, str]:
    fields: dict[str, str] = {}
    async for part in read_parts(request.headers.get("content-type", ""), request.stream()):
        if part.name in FIELDS:
            fields[part.name] = await read_text(part, META_BYTES)
        else:
            await stage.receive(part.name, part.chunks)
    return fields


def _upload(ref: Ref, fields: dict[str, str]) -> Upload:
    return Upload(
        ref=ref,
        parent=_number(fields, "parent"),
        token=_number(fields, "token") if "token" in fields else None,
        job=fields.get("job"),
        base=fields.get("base"),
        meta=parse_meta(fields["meta"]) if "meta" in fields else None,
    )


def _number(fields: dict[str, str], name: str) -> int:
    if not re.fullmatch(r"[0-9]{1,16}", fields.get(name, ""), re.ASCII):
        raise InputError(name, "a number of at most 16 digits is needed here")
    return int(fields[name])


@router.post("/adapters/{branch}", status_code=201)
async def fork(branch: Branch, body: schemas.ForkRequest, request: Request) -> Response:
    """Begin a branch at the base or at a revision of another."""
    door: ServiceState = request.app.state.door
    return _published(await door.publisher.fork(branch, body.from_))


def _published(published: Published) -> Response:
    return JSONResponse(published.manifest.model_dump(mode="json"), 201 if published.is_new else 200)


@router.delete("/adapters/{branch}/{revision}", status_code=204)
async def retire(branch: Branch, revision: Revision, request: Request) -> Response:
    """Delete a revision that is not the head. Requests that use it end on it."""
    door: ServiceState = request.app.state.door
    await door.publisher.retire(Ref(branch, revision))
    return Response(status_code=204)
