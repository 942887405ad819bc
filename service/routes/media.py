"""`PUT /media`: an image or a video is sent once and named by its hash from then on."""

from fastapi import APIRouter, Request

from service.schemas import MediaResponse
from service.state import ServiceState

router = APIRouter(tags=["media"])


@router.put("/media")
async def put_media(request: Request) -> MediaResponse:
    """The body is the file. The least recently used go above a limit; an unknown id is answered 404."""
    door: ServiceState = request.app.state.door
    return MediaResponse(id=await door.media.put(request.stream()))
