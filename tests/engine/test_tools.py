"""Chats that name tools: they reach the prompt where the service was started with a parser of their calls."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from adapters.base import locate
from tests.engine.service_process import ServiceProcess
from trainer.miniature.untrained import TEMPLATE

pytestmark = pytest.mark.engine

CITY = {"type": "string", "enum": ["Oslo", "Lima"]}
PARAMETERS = {"type": "object", "properties": {"city": CITY}, "required": ["city"], "additionalProperties": False}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "37+2*4?"}], "max_tokens": 40, "temperature": 0}


@pytest.fixture(scope="module")
def with_parser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """The miniature with the template of Qwen3-VL, which writes tools into the prompt; its own knows none."""
    folder = tmp_path_factory.mktemp("tools")
    shutil.copytree(locate("miniature"), folder / "base")
    shutil.copyfile(TEMPLATE, folder / "base" / "chat_template.jinja")
    flags = (f"--base={folder / 'base'}", "--dtype=float32", "--tool-parser=hermes", "--max-model-len=2048")
    process = ServiceProcess(folder / "store", *flags)
    yield process
    process.stop()


def ask(service: ServiceProcess, **more: Any) -> dict[str, Any]:
    with service.client() as http:
        answer = http.post("/v1/chat/completions", json=CHAT | more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_tools_and_what_they_answered_reach_the_prompt(with_parser: ServiceProcess) -> None:
    called = {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    turns = [
        {"role": "assistant", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call-1", "content": "rain"},
    ]
    plain, with_tools = ask(with_parser), ask(with_parser, tools=[WEATHER])
    # The miniature has a token for each byte.
    assert with_tools["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + len(json.dumps(WEATHER)) // 2
    later = ask(with_parser, tools=[WEATHER], messages=[*CHAT["messages"], *turns])
    assert later["usage"]["prompt_tokens"] > with_tools["usage"]["prompt_tokens"]


def test_without_a_parser_tools_are_refused_by_its_name(service: ServiceProcess) -> None:
    with service.client() as http:
        refused = http.post("/v1/chat/completions", json=CHAT | {"tools": [WEATHER]})
        assert refused.status_code == 422
        error = refused.json()["error"]
        assert "no parser of tool calls; start it with --tool-parser=hermes" in error["message"]
        assert http.post("/v1/chat/completions", json=CHAT | {"tool_choice": "none"}).status_code == 200
