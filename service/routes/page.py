"""`/`: the page. Its files are static and open to everybody, as nothing of a run is in them; what they show is asked
for with the key, like everything else.

Nothing leaves the service: the browser is told to load and to ask from here alone, and to run no script but the files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as PathParameter
from starlette.responses import FileResponse, Response

from service import views
from service.http.problems import ProblemError
from service.palette import DASHES, NEUTRAL, PHASES, colours
from service.routes.history import Files

FOLDER = Path(__file__).parents[1] / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    # Pictures and clips come with the key, so the page holds them as blobs; a chat shows what was chosen as data URLs.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; media-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # asked for again each time: an upgrade is seen at once
}

router = APIRouter(tags=["page"])


def open_paths() -> Iterator[str]:
    """Paths that ask for no key: the page's files, each by its name."""
    yield "/"
    yield from (f"/page/{path.name}" for path in FOLDER.iterdir() if path.suffix in _TYPES)


# A fixed set, made at the start: what is not in it is not opened, whatever a path looks like.
_OPEN = frozenset(open_paths())


@router.get("/", response_class=FileResponse, include_in_schema=False)
async def index() -> Response:
    return FileResponse(FOLDER / "index.html", media_type="text/html", headers=_HEADERS)


@router.get("/page/{name}", response_class=FileResponse, include_in_schema=False)
async def static(name: Annotated[str, PathParameter(pattern=r"^[a-z][a-z0-9.]*$")]) -> Response:
    if f"/page/{name}" not in _OPEN:
        raise ProblemError("not-found", 404, "the page has no such file")
    path = FOLDER / name
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=_HEADERS)


@router.get("/palette")
async def palette(files: Files) -> views.PageInfo:
    """The colour of each branch, everywhere it is drawn; and whether there is an engine to ask."""
    return views.PageInfo(
        is_read_only=files.is_read_only,
        colours={info.id: colours(info.branches) for info in files.runs.infos()},
        phases=PHASES,
        dashes=[list(dash) for dash in DASHES],
        neutral=NEUTRAL,
    )
