"""The schema that /docs shows: bodies with examples, and a page that needs no other host."""

import re
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient

from service.app import routes


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(routes())


def test_every_route_with_a_body_shows_it_with_an_example(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    bodies = {
        f"{method.upper()} {path}": operation.get("requestBody")
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
        if method in ("put", "post")
    }
    assert "PUT /adapters/{branch}/{revision}" in bodies
    assert "POST /v1/chat/completions" in bodies
    for route, body in bodies.items():
        assert body is not None, route
        (content,) = cast(dict[str, Any], body)["content"].values()
        name = content["schema"].get("$ref", "").rpartition("/")[2]
        assert content.get("example") or schema["components"]["schemas"][name]["examples"], route


def test_the_documentation_is_served_from_here(client: TestClient) -> None:
    page = client.get("/docs").text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert [address for address in addresses if address.endswith((".js", ".css"))]
    for address in addresses:
        assert address.startswith("/"), address
        assert client.get(address).status_code == 200, address
