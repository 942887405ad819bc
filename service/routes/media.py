"""`PUT /media`: an image or a video is sent once and named by its hash from then on."""

from typing import Any

from fastapi import APIRouter, Request

from service.schemas import MediaResponse
from service.state import State

router = APIRouter(tags=["media"])

_FILE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}, "example": "@picture.png"}
        },
    }
}


@router.put("/media", openapi_extra=_FILE_BODY)
async def put_media(request: Request, state: State) -> MediaResponse:
    """The body is the file. The least recently used go above a limit; an unknown id is answered 404."""
    return MediaResponse(id=await state.media.put(request.stream()))
