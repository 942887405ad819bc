"""Bodies of JSON: parsed as pydantic does, an item at a time, and counted while they are in memory."""

import asyncio
import json
import threading
from typing import Any, cast

import pytest
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from service.http.bodies import ITEM_BYTES, Bodies, parse
from service.http.problems import ProblemError
from service.schemas import LogprobsRequest


class Item(BaseModel):
    text: str = ""
    ids: list[int] = []


class Whole(BaseModel):
    items: list[Item] = []
    remainder: Any = None


TEXTS = st.text(max_size=20) | st.sampled_from(['"', "\\\\", '\\"', "]}", "{[", '\\\\"', ","])
ITEMS = st.fixed_dictionaries({"text": TEXTS, "ids": st.lists(st.integers(-9, 10**9), max_size=5)})
REMAINDER = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS, lambda x: st.lists(x) | st.dictionaries(TEXTS, x)
)


@given(st.lists(ITEMS, max_size=4), REMAINDER, st.sampled_from([None, 0, 3]), st.booleans())
def test_any_body_is_parsed_as_pydantic_does(items, remainder, indent, ascii) -> None:
    body = json.dumps({"items": items, "remainder": remainder}, indent=indent, ensure_ascii=ascii).encode()
    assert parse(body, Whole) == Whole.model_validate_json(body)


@given(st.binary(max_size=30) | st.text(alphabet='{}[]",:\\\\ 1items', max_size=30).map(str.encode))
def test_what_is_no_object_is_an_error_of_the_caller(body) -> None:
    try:
        expected = Whole.model_validate_json(body)
    except ValueError:
        with pytest.raises((ProblemError, RequestValidationError)):
            parse(body, Whole)
    else:
        assert parse(body, Whole) == expected


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"items":', b'{"items":[{},]}', b'{"other":nope}', b'{"other":"\\xff"}', b"{} {}"]
)
def test_a_broken_body_cannot_be_read(body) -> None:
    with pytest.raises(ProblemError) as error:
        parse(body, Whole)
    assert error.value.status == 400


def test_errors_name_the_item_and_are_few() -> None:
    with pytest.raises(RequestValidationError) as error:
        parse(b'{"sequences": [{"prompt": [1], "completion": [1]}, {"prompt": [1]}]}', LogprobsRequest)
    assert [item["loc"] for item in error.value.errors()][-1] == ("body", "sequences", 1, "completion")
    with pytest.raises(RequestValidationError) as error:
        parse(b'{"sequences": [' + b"{}," * 10**5 + b"{}]}", LogprobsRequest)
    assert len(error.value.errors()) < 100


def test_an_item_is_bounded_outside_of_its_texts_only() -> None:
    text = "a" * (ITEM_BYTES + 1)
    assert parse(json.dumps({"items": [{"text": text}]}).encode(), Whole) == Whole(items=[Item(text=text)])
    with pytest.raises(ProblemError, match=r"items\.0: more than") as error:
        parse(b'{"items": [{"ids": [' + b"1," * ITEM_BYTES + b"1]}]}", Whole)
    assert error.value.status == 413


def test_no_parser_holds_the_interpreter_for_more_than_an_item() -> None:
    pieces: list[int] = []

    class Noted(Item):
        @classmethod
        def model_validate_json(cls, json_data: Any, **options: Any) -> Any:
            pieces.append(len(json_data))
            return super().model_validate_json(json_data, **options)

    class Body(BaseModel):
        items: list[Noted] = []

    item = b'{"ids": [' + b"100000," * 16_000 + b"1]}"
    body = b'{"items": [' + b",".join([item] * 100) + b"]}"
    assert len(cast(Body, parse(body, Body)).items) == 100
    assert pieces == [len(item)] * 100


def test_bodies_that_are_too_large_together_are_answered_busy() -> None:
    app, gate = FastAPI(), threading.Event()
    bodies = Bodies(1000)

    @app.post("/")
    async def hold(request: Request) -> int:
        async with bodies.read(request) as body:
            await asyncio.to_thread(gate.wait, 30)
            return len(body)

    with TestClient(app) as client:
        first: list[int] = []
        thread = threading.Thread(target=lambda: first.append(client.post("/", content=b"a" * 900).json()))
        thread.start()
        while bodies.held_bytes < 900:
            pass
        with pytest.raises(ProblemError) as error:
            client.post("/", content=b"a" * 200)
        assert (error.value.status, error.value.type) == (429, "busy")
        gate.set()
        thread.join()
        assert first == [900]
        assert bodies.held_bytes == 0
        assert client.post("/", content=b"a" * 200).json() == 200
