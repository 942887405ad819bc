"""What is taken under `/v1`, and the bounds of grammars: everything else is refused before vLLM sees it."""

from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from pydantic import ValidationError

from service.openai_schemas import (
    GRAMMAR_LENGTH,
    MOST_CHOICES,
    MOST_TOOLS,
    SCHEMA_LENGTH,
    ChatRequest,
    CompletionRequest,
    StructuredOutputs,
)

MESSAGES = [{"role": "user", "content": "37+2*4?"}]
NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"$defs": {"node": NODE}, "$ref": "#/$defs/node"},
        {"definitions": {"a": {"type": "string"}, "b": {"anyOf": [{"$ref": "#/definitions/a"}]}}, "items": {}},
    ],
)
def test_schemas_that_pydantic_writes_are_taken(schema: dict[str, Any]) -> None:
    for body in ({"structured_outputs": {"json": schema}}, response_format(schema)):
        request = ChatRequest.model_validate({"messages": MESSAGES} | body)
        assert request.model_dump(exclude_none=True, by_alias=True, exclude_unset=True)["messages"] == MESSAGES


def response_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "#"}, "leads to no"),
        ({"$ref": "http://localhost/x"}, "leads to no"),
        ({"properties": {"a": {"$ref": "#/$defs/missing"}}}, "leads to no"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}}, "nothing but itself"),
        ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}}, "but itself"),
        ({"enum": ["a" * SCHEMA_LENGTH]}, "characters"),
    ],
)
def test_schemas_without_an_end_are_refused_in_words(schema: dict[str, Any], words: str) -> None:
    for body in ({"structured_outputs": {"json": schema}}, response_format(schema)):
        with pytest.raises(ValidationError, match=words):
            ChatRequest.model_validate({"messages": MESSAGES} | body)


def test_a_deep_schema_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(30):
        schema = {"items": schema}
    with pytest.raises(ValidationError, match="deeper than"):
        StructuredOutputs.model_validate({"json": schema})


@pytest.mark.parametrize(
    "body",
    [
        {"regex": "a" * (GRAMMAR_LENGTH + 1)},
        {"grammar": "a" * (GRAMMAR_LENGTH + 1)},
        {"choice": ["a"] * (MOST_CHOICES + 1)},
        {"choice": ["a" * (GRAMMAR_LENGTH + 1)]},
        {"choice": []},
        {"structural_tag": "{}"},
        {"_backend": "outlines"},
    ],
)
def test_grammars_are_bounded_in_size_and_number(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        StructuredOutputs.model_validate(body)


@pytest.mark.parametrize(
    "key",
    ["prompt_embeds", "mm_processor_kwargs", "media_io_kwargs", "chat_template", "kv_transfer_params",
     "vllm_xargs", "request_id", "priority", "cache_salt", "use_beam_search", "prompt_logprobs", "documents"],
)  # fmt: skip
def test_keys_that_reach_other_code_are_not_taken(key: str) -> None:
    for model, body in ((ChatRequest, {"messages": MESSAGES}), (CompletionRequest, {"prompt": "a"})):
        with pytest.raises(ValidationError, match=key):
            model.model_validate(body | {key: None})


def test_every_key_is_one_of_openais_or_named_here() -> None:
    """A key of this service that OpenAI calls otherwise would be refused from its clients."""
    extras = set(ChatRequest.model_fields) - set(CompletionCreateParamsBase.__annotations__)
    assert extras == {"top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "min_tokens", "stream",
                    "structured_outputs", "add_generation_prompt", "continue_final_message",
                    "chat_template_kwargs"}  # fmt: skip


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


def test_a_conversation_with_tools_is_taken_as_it_is() -> None:
    messages = [
        *MESSAGES,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call-1", "content": "rain"},
    ]
    body = {"messages": messages, "tools": [WEATHER], "tool_choice": "auto"}
    request = ChatRequest.model_validate(body)
    assert request.model_dump(exclude_none=True, by_alias=True, exclude_unset=True) == body


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"messages": [{"role": "assistant"}]}, "a message has content"),
        ({"tools": []}, "at least 1 item"),
        ({"tools": [WEATHER] * (MOST_TOOLS + 1)}, "at most 64 items"),
        ({"tools": [WEATHER | {"function": {"name": "a b"}}]}, "should match pattern"),
        ({"tools": [WEATHER | {"function": {"name": "a", "parameters": {"$ref": "#"}}}]}, "leads to no"),
        ({"tool_choice": "always"}, "'none' or 'auto'"),
    ],
)
def test_a_wrong_tool_is_refused_in_words(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ChatRequest.model_validate({"messages": MESSAGES} | change)
