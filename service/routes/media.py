"""`PUT /media`: an image or a video is sent once and named by its hash from then on."""

from fastapi import APIRouter, Request

from service.schemas import MediaResponse
from service.state import State

router = APIRouter(tags=["media"])


@router.put("/media")
async def put_media(request: Request, state: State) -> MediaResponse:
    """The body is the file. The least recently used go above a limit; an unknown id is answered 404."""
    return MediaResponse(id=await state.media.put(request.stream()))
