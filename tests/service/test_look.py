"""The routes that the page reads, over a folder: in pages, and for reading alone."""

import io
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.look import folder_app
from service.media import encode_video
from tests.page.folder import HOSTILE, RunWriter, write_demo

RUN = "/runs/demo-1"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    write_demo(folder)
    return folder


@pytest.fixture(scope="module")
def client(out: Path) -> Generator[TestClient]:
    with TestClient(folder_app(out, "miniature")) as client:
        yield client


def pages(client: TestClient, path: str, member: str, **query: object) -> list[dict]:
    """All items, three at a time."""
    items, after = [], None
    while True:
        params = {**query, "limit": 3} | ({} if after is None else {"after": after})
        page = client.get(path, params=params).json()
        assert len(page[member]) <= 3
        items += page[member]
        after = page["next"]
        if after is None:
            return items


@pytest.mark.parametrize(
    ("path", "member"),
    [
        (f"{RUN}/notes", "notes"),
        (f"{RUN}/rollouts/text/4/completions", "rows"),
        ("/revisions", "revisions"),
    ],
)
def test_pages_together_are_the_whole(client: TestClient, path: str, member: str) -> None:
    whole = client.get(path, params={"limit": 1000}).json()
    assert whole["next"] is None
    assert len(whole[member]) > 3
    assert pages(client, path, member) == whole[member]


@pytest.mark.parametrize("after", ["text", "text@", "@3", "base", "te xt@1"])
def test_a_page_after_no_revision_is_refused(client: TestClient, after: str) -> None:
    response = client.get("/revisions", params={"after": after})
    assert response.status_code == 422
    assert "BRANCH@REVISION" in response.json()["detail"] or "no revisions" in response.json()["detail"]


def test_a_group_has_the_text_of_every_token(client: TestClient) -> None:
    group = client.get(f"{RUN}/rollouts/text/4/groups/image/0").json()
    assert (group["question"], group["groups"]) == (HOSTILE, 8)
    for completion in group["completions"]:
        assert len(completion["pieces"]) == len(completion["token_ids"]) == len(completion["delta"]) == 24


def test_without_its_base_a_run_is_shown_without_pieces(out: Path) -> None:
    with TestClient(folder_app(out, "no/such-base")) as client:
        assert client.get(f"{RUN}/rollouts/text/4/groups/image/0").json()["completions"][0]["pieces"] is None


def test_the_same_prompt_is_found_in_steps_before(client: TestClient) -> None:
    places = client.get(f"{RUN}/rollouts/text/4/prompts/image-2").json()
    assert places == [{"step": step, "part": "image", "group": 2} for step in (3, 2, 1)]


def test_a_log_is_read_on_from_where_it_was(client: TestClient, out: Path) -> None:
    first = client.get("/logs/service.log").json()
    assert first["lines"] == ["coevo serve: loading", "WARNING 01-05 slow disk"]
    with (out / "logs/service.log").open("a") as file:
        file.write("a third line\nhalf a")
    assert client.get("/logs/service.log", params={"after": first["next"]}).json()["lines"] == ["a third line"]
    assert client.get("/logs/..%2Frecipe.json").status_code == 404


def test_media_come_as_no_page_of_their_own(client: TestClient) -> None:
    group = client.get(f"{RUN}/rollouts/text/4/groups/native/1").json()
    answer = client.get(f"/media/{group['media'][0]}")
    assert answer.content.startswith(b"\x89PNG")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get(f"/media/sha256:{'0' * 64}").json()["type"] == "unknown-media"
    assert client.get("/media/..%2Fid").status_code == 404


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH"])
def test_nothing_can_be_changed_through_it(client: TestClient, method: str) -> None:
    assert client.request(method, f"{RUN}/rollouts/text/4", content=b"{}").status_code == 405


def test_the_page_asks_nobody_else(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert client.get("/page/..%2Fapp.py").status_code == 404
    assert client.get("/page/nothing.js").json()["type"] == "not-found"


def test_a_folder_is_left_as_it_was(tmp_path: Path) -> None:
    writer = write_demo(tmp_path)
    events = writer.folder / "events.jsonl"
    with events.open("a") as file:
        file.write('{"half": ')  # its own service writes on
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")}
    with TestClient(folder_app(tmp_path, None)) as client:
        assert client.get("/runs").status_code == 200
        assert client.get(f"{RUN}/series", params={"key": "native/reward"}).status_code == 200
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")} == before


def test_frames_of_a_clip_are_a_picture_that_browsers_know(client: TestClient, out: Path) -> None:
    frames_THWC = np.zeros((10, 32, 48, 3), np.uint8)
    frames_THWC[5:] = 255
    name = RunWriter(out, "demo-2").media(encode_video(frames_THWC, 2.0))
    answer = client.get(f"/media/{name}/frames")
    assert answer.headers["content-type"] == "image/png"
    picture = np.asarray(Image.open(io.BytesIO(answer.content)).convert("L"))
    assert picture.shape == (32, 8 * 48 + 7 * 2)
    assert (picture[:, 0] == 0).all()
    assert (picture[:, -1] == 255).all()
