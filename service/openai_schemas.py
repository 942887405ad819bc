"""Bodies of the OpenAI-compatible routes: the keys that are taken, each with its bounds, and nothing else.

vLLM reads many more. Some reach code that trusts whoever sends them (tensors, arguments of the processor, templates),
so a key is here when somebody needs it, and its values are bounded. Images are data URLs or ids of `PUT /media`.

Left out: tools that must be called, audio, video (`/generate` takes it), beam search, and log-probabilities of a prompt
but by `echo`.
"""

import json
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from adapters.names import BASE
from service.schemas import Body, Text, TextPart, TokenId

_INT32, _INT62 = 2**31, 2**62
# A grammar is compiled before the first token, in everybody's time, and its time grows faster than its text: a schema
# of 250 kB took 16 s, a million choices 45. At these sizes it is a second.
GRAMMAR_LENGTH = 4096
SCHEMA_LENGTH = 16_384
SCHEMA_DEPTH = 24
MOST_CHOICES = 256
MOST_TOOLS = 64

_ALTERNATIVES = ("anyOf", "oneOf", "allOf")


def _check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Small, shallow, and without a definition that is nothing but itself: vLLM follows those for ever."""
    length = len(json.dumps(schema))
    if length > SCHEMA_LENGTH:
        words = "a schema of {length} characters; {most} are allowed"
        raise PydanticCustomError("schema", words, {"length": length, "most": SCHEMA_LENGTH})
    definitions = {
        f"#/{key}/{name}": part
        for key in ("$defs", "definitions")
        if isinstance(schema.get(key), dict)
        for name, part in schema[key].items()
    }
    for part in _parts(schema):
        if "$ref" in part and part["$ref"] not in definitions:
            raise PydanticCustomError("schema", "a $ref leads to no #/$defs/NAME of the schema")
    try:
        TopologicalSorter({name: list(_aliases(part)) for name, part in definitions.items()}).prepare()
    except CycleError:
        raise PydanticCustomError("schema", "a definition is nothing but itself; put it below a property") from None
    return schema


def _parts(value: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Every object in it."""
    if depth > SCHEMA_DEPTH:
        raise PydanticCustomError("schema", "a schema deeper than {most} levels", {"most": SCHEMA_DEPTH})
    if isinstance(value, dict):
        yield cast(dict[str, Any], value)
        value = [*cast(dict[str, Any], value).values()]
    if isinstance(value, list):
        for item in cast(list[Any], value):
            yield from _parts(item, depth + 1)


def _aliases(part: Any) -> Iterator[str]:
    """What a definition stands for without a step down into the document."""
    if isinstance(part, dict):
        schema = cast(dict[str, Any], part)
        yield from [str(schema["$ref"])] if "$ref" in schema else []
        for key in _ALTERNATIVES:
            for item in schema.get(key) or []:
                yield from _aliases(item)


JsonSchema = Annotated[dict[str, Any], AfterValidator(_check_schema)]
Grammar = Annotated[Text, Field(min_length=1, max_length=GRAMMAR_LENGTH)]


class ImageURL(Body):
    url: Text
    """`data:image/png;base64,...`, or `sha256:HEX` of an image that was PUT to /media."""
    detail: Literal["auto", "low", "high"] | None = None
    """Taken and not looked at: the service's own bounds of pixels hold."""


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: ImageURL


class CalledFunction(Body):
    name: Text
    arguments: Text
    """JSON, as the model wrote it."""


class ToolCall(Body):
    id: Text
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Body):
    role: Literal["system", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart | ImagePart], Field(max_length=1024)] = ""
    tool_calls: Annotated[list[ToolCall], Field(max_length=MOST_TOOLS)] | None = None
    """Of the assistant, in an earlier turn."""
    tool_call_id: Text | None = None
    """Of what a tool answered."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if "content" not in self.model_fields_set and not self.tool_calls:
            raise PydanticCustomError("message", "a message has content, or an assistant's tool_calls")
        return self


class ToolFunction(Body):
    name: Annotated[Text, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: Text | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: ToolFunction


class NamedSchema(Body):
    model_config = ConfigDict(populate_by_name=True)

    name: Text
    description: Text | None = None
    schema_: JsonSchema = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise PydanticCustomError(
                "response_format", "json_schema stands beside the type json_schema, and only there"
            )
        return self


class StructuredOutputs(Body):
    """One of them."""

    json_: JsonSchema | None = Field(default=None, alias="json")
    regex: Grammar | None = None
    grammar: Grammar | None = None
    choice: Annotated[list[Grammar], Field(min_length=1, max_length=MOST_CHOICES)] | None = None
    json_object: Literal[True] | None = None


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class OpenAIRequest(Body):
    """What both routes take. A value of null is one that was left out."""

    model: Text = BASE
    """`base`, a branch or `branch@revision`."""
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    """Completions of each prompt."""
    max_tokens: Annotated[int, Field(ge=1, lt=_INT32)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=_INT32)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    seed: Annotated[int, Field(ge=-_INT62, lt=_INT62)] | None = None
    stop: Text | Annotated[list[Annotated[Text, Field(min_length=1)]], Field(max_length=64)] | None = None
    stop_token_ids: Annotated[list[Annotated[TokenId, Field(lt=_INT32)]], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=_INT32)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    user: Text | None = None
    """Taken and not looked at."""


class ChatRequest(OpenAIRequest):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "37+2*4?"}], "max_tokens": 40}]}
    )

    messages: list[ChatMessage] = Field(min_length=1, max_length=1024)
    max_completion_tokens: Annotated[int, Field(ge=1, lt=_INT32)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=MOST_TOOLS)] | None = None
    """Taken where the service was started with a tool parser."""
    tool_choice: Literal["none", "auto"] | None = None
    chat_template_kwargs: Annotated[dict[str, bool], Field(max_length=16)] | None = None
    """Switches of the base's template, such as `enable_thinking`."""


class CompletionRequest(OpenAIRequest):
    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "37+2*4?", "max_tokens": 40}]})

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=1024)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=1024)]
    )
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    """Tell the prompt too."""
