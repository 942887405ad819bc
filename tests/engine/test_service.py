"""The service over HTTP with a real engine: scores, samples, publishing, the OpenAI routes."""

import asyncio
import base64
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import torch
from safetensors.torch import load_file, save_file

from clients.calls import media_id
from clients.client import AsyncClient
from clients.retries import RefusedError
from service.engine.vllm import EngineMedia
from service.media import encode_image, encode_video
from service.schemas import SAFETENSORS, GenerateRequest, LogprobsRequest
from service.wire import decode_generated, decode_logprobs
from tests.engine.service_process import ServiceProcess
from trainer.miniature.capabilities import CAPABILITIES
from trainer.miniature.question import questions

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.fixture
def http(service: ServiceProcess) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def publish(http: httpx.Client, name: str, folder: Path, parent: int, **fields: str) -> httpx.Response:
    names = ("adapter_model.safetensors", "adapter_config.json")
    files = {file: (file, (folder / file).read_bytes()) for file in names}
    return http.put(f"/adapters/{name}", data={"parent": str(parent), **fields}, files=files)


def changed(folder: Path, out: Path, factor: float) -> Path:
    """Another adapter of the same shape."""
    out.mkdir()
    weights = load_file(folder / "adapter_model.safetensors")
    scaled = {key: value * factor if "lora_B" in key else value for key, value in weights.items()}
    save_file(scaled, out / "adapter_model.safetensors", metadata={"format": "pt"})
    (out / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    return out


ASK = {"sequences": [{"prompt": {"messages": [{"role": "user", "content": "37+2*4?"}]}, "completion": "plain2*4=8;"}]}


def scores(http: httpx.Client, *adapters: str) -> list[dict]:
    answer = http.post("/logprobs", params=[("adapter", name) for name in adapters], json=ASK)
    assert answer.status_code == 200, answer.text
    return answer.json()["adapters"]


def test_a_published_revision_scores_as_peft_does(http, adapter_folders, base, reference) -> None:
    """And so does an adapter that stands beside the store."""
    assert publish(http, "alone/1", adapter_folders["plain"], 0).status_code == 201
    alone, beside, of_base = scores(http, "alone", "merged", "base")
    assert (alone["adapter"], alone["revision"], of_base["adapter"]) == ("alone", 1, "base")
    assert (beside["adapter"], beside["revision"]) == ("merged", 0)
    assert http.get("/adapters").json()["extra"] == ["merged"]
    assert "merged" in {card["id"] for card in http.get("/v1/models").json()["data"]}
    prompt = base[1].tokenizer(
        base[1].apply_chat_template(ASK["sequences"][0]["prompt"]["messages"], add_generation_prompt=True)
    )["input_ids"]
    (prompt,) = prompt if isinstance(prompt[0], list) else (prompt,)
    for name, scored in (("plain", alone), ("thin", beside), ("base", of_base)):
        ids = scored["sequences"][0]["token_ids"]
        expected_CV = reference.logprobs(name, [*prompt, *ids], len(ids), EngineMedia())
        expected = expected_CV[torch.arange(len(ids)), torch.tensor(ids)].tolist()
        assert scored["sequences"][0]["logprobs"] == pytest.approx(expected, abs=1e-3)


def test_publishing_is_idempotent_and_fenced_by_the_head(http, adapter_folders, tmp_path) -> None:
    first = publish(http, "fenced/1", adapter_folders["thin"], 0)
    assert first.status_code == 201
    again = publish(http, "fenced/1", adapter_folders["thin"], 0)
    assert (again.status_code, again.json()["digest"]) == (200, first.json()["digest"])
    different = changed(adapter_folders["thin"], tmp_path / "other", 2.0)
    clash = publish(http, "fenced/1", different, 0)
    assert (clash.status_code, clash.json()["type"], clash.json()["head"]) == (409, "revision-exists", 1)
    stale = publish(http, "fenced/2", different, 0)
    assert (stale.status_code, stale.json()["type"]) == (409, "stale-parent")
    assert publish(http, "fenced/2", different, 1).status_code == 201
    old, new, head = scores(http, "fenced@1", "fenced@2", "fenced")
    assert (old["revision"], new["revision"], head["revision"]) == (1, 2, 2)
    assert old["sequences"][0]["logprobs"] != new["sequences"][0]["logprobs"] == head["sequences"][0]["logprobs"]
    assert http.get("/adapters/fenced").json()["head"] == 2


def test_forks_and_retired_revisions(http, adapter_folders, tmp_path) -> None:
    assert publish(http, "origin/1", adapter_folders["strong"], 0).status_code == 201
    assert http.post("/adapters/student", json={"from": "origin@1"}).status_code == 201
    fork, origin = scores(http, "student@0", "origin@1")
    assert fork["sequences"] == origin["sequences"]
    assert fork["digest"] == origin["digest"]
    assert http.post("/adapters/fresh", json={"from": "base"}).status_code == 201
    fresh, base_scores = scores(http, "fresh", "base")
    assert fresh["sequences"] == base_scores["sequences"]
    assert publish(http, "origin/2", changed(adapter_folders["strong"], tmp_path / "b", 0.5), 1).status_code == 201
    assert http.delete("/adapters/origin/1").status_code == 204
    gone = http.post("/logprobs", params={"adapter": "origin@1"}, json=ASK)
    assert (gone.status_code, gone.json()["type"]) == (410, "retired-adapter")
    assert scores(http, "student@0")[0]["sequences"] == fork["sequences"]


def test_files_come_back_as_they_were_sent(http, adapter_folders) -> None:
    publish(http, "back/1", adapter_folders["thin"], 0)
    manifest = http.get("/adapters/back/1").json()
    sent = (adapter_folders["thin"] / "adapter_model.safetensors").read_bytes()
    assert http.get("/adapters/back/1/adapter_model.safetensors").content == sent
    assert manifest["files"]["adapter_model.safetensors"]["bytes"] == len(sent)
    assert http.get("/adapters/back/1/passwd").status_code == 404


def test_a_canary_that_differs_is_refused_and_nothing_is_kept(http, adapter_folders) -> None:
    refused = publish(http, "odd/1", adapter_folders["thin"], 0, meta='{"canary": [' + ",".join(["-1.0"] * 16) + "]}")
    assert (refused.status_code, refused.json()["type"]) == (422, "canary")
    assert "odd" not in http.get("/adapters").json()["branches"]


def test_keys_that_the_engine_would_ignore_are_refused(http, adapter_folders, tmp_path) -> None:
    weights = load_file(adapter_folders["thin"] / "adapter_model.safetensors")
    out = changed(adapter_folders["thin"], tmp_path / "wrong", 1.0)
    renamed = {key.replace("language_model.", ""): value for key, value in weights.items()}
    save_file(renamed, out / "adapter_model.safetensors", metadata={"format": "pt"})
    refused = publish(http, "wrong/1", out, 0)
    assert (refused.status_code, refused.json()["type"]) == (422, "invalid")
    assert any("language_model" in problem for problem in refused.json()["problems"])


def test_media_by_value_and_by_id_give_the_same(http) -> None:
    question = next(questions(CAPABILITIES["image"], "test", 0, 1))
    picture = encode_image(question.scene.render()[0])
    content = [{"type": "image"}, {"type": "text", "text": question.text}]
    name = http.put("/media", content=picture).json()["id"]
    answers = []
    for image in (base64.b64encode(picture).decode(), name):
        sequence = {
            "prompt": {"messages": [{"role": "user", "content": content}]},
            "completion": "arrow",
            "images": [image],
        }
        answers.append(http.post("/logprobs", json={"sequences": [sequence]}).json()["adapters"][0]["sequences"])
    assert answers[0] == answers[1]
    assert answers[0][0]["prompt_tokens"] == 21 + 6 - 6


def test_binary_answers_hold_the_same_numbers(http) -> None:
    plain = http.post("/logprobs", json=ASK | {"top_k": 3}).json()["adapters"]
    binary = http.post("/logprobs", json=ASK | {"top_k": 3}, headers={"accept": SAFETENSORS})
    decoded = decode_logprobs(binary.content).model_dump()["adapters"]
    assert decoded[0]["sequences"][0]["token_ids"] == plain[0]["sequences"][0]["token_ids"]
    assert decoded[0]["sequences"][0]["logprobs"] == pytest.approx(plain[0]["sequences"][0]["logprobs"])
    assert decoded[0]["sequences"][0]["top_ids"] == plain[0]["sequences"][0]["top_ids"]


def test_samples_of_a_prompt_come_together_with_its_expanded_ids(http) -> None:
    question = next(questions(CAPABILITIES["video"], "test", 0, 1))
    clip = base64.b64encode(encode_video(question.scene.render(), 2)).decode()
    content = [{"type": "video"}, {"type": "text", "text": question.text}]
    prompt = {"prompt": {"messages": [{"role": "user", "content": content}]}, "videos": [clip], "seed": 1}
    body = {"prompts": [prompt], "n": 4, "max_tokens": 40}
    first, again = (http.post("/generate", json=body).json() for _ in range(2))
    assert len(first["prompts"][0]["completions"]) == 4
    assert len(first["prompts"][0]["prompt_token_ids"]) > 70
    ids = [[completion["token_ids"] for completion in answer["prompts"][0]["completions"]] for answer in (first, again)]
    assert ids[0] == ids[1]
    assert len({tuple(completion) for completion in ids[0]}) > 1
    bare = http.post("/generate", json=body | {"logprobs": None}).json()["prompts"][0]["completions"]
    assert [completion["token_ids"] for completion in bare] == ids[0]
    assert all(completion["logprobs"] == [] for completion in bare)
    binary = http.post("/generate", json=body | {"logprobs": None}, headers={"accept": SAFETENSORS})
    assert decode_generated(binary.content).model_dump(exclude_none=True)["prompts"][0]["completions"] == bare


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"completion": ""}, 422, "invalid"),
        ({"completion": []}, 422, "invalid"),
        ({"prompt": [10**6]}, 422, "invalid"),
        ({"prompt": []}, 422, "invalid"),
        ({"prompt": [1] * 600}, 422, "invalid"),
        ({"images": ["http://localhost/x.png"]}, 422, "media-reference"),
        ({"images": ["/etc/passwd"]}, 422, "media-reference"),
        ({"images": ["sha256:" + "0" * 64]}, 404, "unknown-media"),
        ({"images": [base64.b64encode(b"GIF89a....").decode()]}, 415, "unsupported-media"),
        ({"unknown": 1}, 422, "invalid"),
        ({"token_ids": [[1]]}, 422, "invalid"),
    ],
)
def test_bad_sequences_get_one_clear_answer(change: dict, status: int, kind: str, http) -> None:
    answer = http.post("/logprobs", json={"sequences": [ASK["sequences"][0] | change]})
    assert (answer.status_code, answer.json()["type"]) == (status, kind)
    assert answer.headers["content-type"] == "application/problem+json"
    assert scores(http, "base")


def test_what_does_not_fit_after_expansion_is_told(http) -> None:
    """20 ids and 490 more look like 510; the picture makes 745 of them."""
    picture = base64.b64encode(encode_image(np.zeros((512, 480, 3), np.uint8))).decode()
    prompt = {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]}
    scored = {"sequences": [{"prompt": prompt, "completion": [1] * 490, "images": [picture]}]}
    answer = http.post("/logprobs", json=scored)
    assert (answer.status_code, answer.json()["type"]) == (422, "invalid"), answer.text
    fits = {"prompts": [{"prompt": prompt, "images": [picture]}], "max_tokens": 400}
    # vLLM's front remembers the picture of a request that never came to its engine, and gives up the next with it.
    # The one after that is answered; clients repeat a 503 by themselves.
    response = http.post("/generate", json=fits)
    if response.status_code == 503:
        response = http.post("/generate", json=fits)
    assert response.status_code == 200, response.text
    generated = response.json()["prompts"][0]
    assert len(generated["prompt_token_ids"]) + len(generated["completions"][0]["token_ids"]) <= 512


def test_an_unknown_adapter_is_404(http) -> None:
    assert http.post("/logprobs", params={"adapter": "nobody"}, json=ASK).status_code == 404


def test_the_openai_client_chats_with_a_branch_and_an_image(service, http, adapter_folders) -> None:
    publish(http, "chatty/1", adapter_folders["plain"], 0)
    question = next(questions(CAPABILITIES["image"], "test", 0, 1))
    url = "data:image/png;base64," + base64.b64encode(encode_image(question.scene.render()[0])).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question.text}]
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none") as client:
        assert {"base", "chatty"} <= {model.id for model in client.models.list()}
        chunks = list(
            client.chat.completions.create(
                model="chatty", messages=[{"role": "user", "content": content}], max_tokens=40, stream=True
            )
        )
        assert {chunk.model for chunk in chunks} == {"chatty@1"}
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            client.chat.completions.create(
                model="base",
                messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]}],
            )
        assert refused.value.code == "media-reference"
        with pytest.raises(openai.NotFoundError) as unknown:
            client.completions.create(model="nobody", prompt="37+2*4?")
        assert (unknown.value.code, unknown.value.param) == ("unknown-adapter", "model")


@pytest.mark.parametrize(("route", "model"), [("/logprobs", "LogprobsRequest"), ("/generate", "GenerateRequest")])
def test_the_example_in_the_documentation_works_when_pasted(route: str, model: str, http) -> None:
    (example,) = http.get("/openapi.json").json()["components"]["schemas"][model]["examples"]
    assert http.post(route, json=example).status_code == 200


def test_one_answer_tells_all_media_of_a_request_that_are_missing(http) -> None:
    drawn = islice(questions(CAPABILITIES["image"], "test", 3, 1), 2)
    pictures = [encode_image(question.scene.render()[0]) for question in drawn]
    content = [{"type": "image"}, {"type": "text", "text": "which?"}]
    prompts = [{"prompt": {"messages": [{"role": "user", "content": content}]}, "images": [media_id(picture)]}
               for picture in pictures]  # fmt: skip
    problem = http.post("/generate", json={"prompts": prompts, "max_tokens": 4}).json()
    assert problem["ids"] == [media_id(picture) for picture in pictures]
    scored = [prompt | {"completion": [5]} for prompt in prompts]
    assert http.post("/logprobs", json={"sequences": scored}).json()["ids"] == problem["ids"]


def test_the_typed_client_publishes_scores_and_samples(service, adapter_folders, tmp_path) -> None:
    question = next(questions(CAPABILITIES["image"], "test", 0, 1))
    picture = encode_image(question.scene.render()[0])
    content = [{"type": "image"}, {"type": "text", "text": question.text}]
    prompt = {"prompt": {"messages": [{"role": "user", "content": content}]}, "images": [media_id(picture)]}

    async def scenario() -> None:
        async with AsyncClient(service.url) as client:
            await client.wait_until_ready(30)
            assert (await client.publish("typed", 1, adapter_folders["thin"], parent=0)).revision == 1
            assert (await client.publish("typed", 1, adapter_folders["thin"], parent=0)).revision == 1
            request = GenerateRequest.model_validate({"prompts": [prompt], "n": 2, "max_tokens": 40})
            (answer,) = await client.generate("typed", request, media={media_id(picture): picture})
            completion = answer.prompts[0].completions[0]
            sequence = prompt | {"completion": completion.token_ids}
            scored = await client.logprobs(["typed", "base"], LogprobsRequest.model_validate({"sequences": [sequence]}))
            assert [adapter.adapter for adapter in scored.adapters] == ["typed", "base"]
            assert scored.adapters[0].sequences[0].logprobs == pytest.approx(completion.logprobs, abs=1e-3)
            assert (await client.adapters()).branches["typed"].head == 1
            await client.download("typed", 1, "adapter_model.safetensors", tmp_path / "back.safetensors")
            sent = (adapter_folders["thin"] / "adapter_model.safetensors").read_bytes()
            assert (tmp_path / "back.safetensors").read_bytes() == sent
            with pytest.raises(RefusedError, match="does not continue"):
                await client.publish("typed", 3, adapter_folders["plain"], parent=2)

    asyncio.run(scenario())


def test_readiness_and_metrics(http) -> None:
    assert http.get("/healthz").text == "ok\n"
    assert http.get("/readyz").text == "ready\n"
    text = http.get("/metrics").text
    assert 'coevo_tokens_total{branch="base",kind="scored"}' in text
