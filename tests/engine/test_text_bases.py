"""A base without vision behind the real service: what PEFT's adapters of it score, its chats, and what it refuses."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from clients.cli import main
from service.engine.arguments import LORA_MODULES
from service.media import encode_image
from tests.engine.service_process import ServiceProcess
from tests.engine.test_scores import random_ids
from tests.text_bases import KINDS, write_text_base

pytestmark = pytest.mark.engine

MODULES = {"seven": LORA_MODULES, "five": ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")}
PICTURE = base64.b64encode(encode_image(np.zeros((32, 32, 3), np.uint8))).decode()
PROMPT = {"messages": [{"role": "user", "content": [{"type": "text", "text": text} for text in ("37+", "2*4?")]}]}


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_base(tmp_path_factory.mktemp("base") / request.param, request.param)


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """As PEFT saves them, with a B that is not zero."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, (name, modules) in enumerate(MODULES.items()):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=list(modules), init_lora_weights=False)
        peft = get_peft_model(model, config)
        for key, parameter in peft.named_parameters():
            if "lora_B" in key:
                parameter.data.mul_(0.1)
        peft.save_pretrained(str(root / name))
    return {name: root / name for name in MODULES}


@pytest.fixture(scope="module")
def text_service(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    process = ServiceProcess(tmp_path_factory.mktemp("service") / "store", f"--base={base}", "--dtype=float32")
    yield process
    process.stop()


def by_peft(base: Path, folder: Path | None, ids: list[int], completion: list[int]) -> np.ndarray:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if folder is not None:
        model = PeftModel.from_pretrained(model, folder)
    with torch.inference_mode():
        logits_CV = model.eval()(input_ids=torch.tensor([[*ids, *completion]])).logits[0, len(ids) - 1 : -1]
    return logits_CV.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)].numpy()


def test_adapters_are_published_and_score_as_peft_says(
    text_service: ServiceProcess, base: Path, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COEVO_SERVICE_URL", text_service.url)
    for name, folder in adapters.items():
        assert main(["publish", str(folder), name]) == 0
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    messages = [{"role": "user", "content": "37+2*4?"}]  # the parts of the prompt's message, joined
    chat = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    completions = [random_ids(length, length) for length in (3, 17, 40)]
    names = ["seven", "base", "five", "seven"]
    body = {"sequences": [{"prompt": PROMPT, "completion": completion} for completion in completions]}
    with text_service.client() as http:
        rows = http.post("/logprobs", params={"adapter": names}, json=body).json()["adapters"]
    for name, row in zip(names, rows, strict=True):
        for completion, scored in zip(completions, row["sequences"], strict=True):
            expected = by_peft(base, adapters.get(name), chat, completion)
            np.testing.assert_allclose(scored["logprobs"], expected, rtol=0, atol=1e-4, err_msg=name)
            assert np.abs(np.array(scored["logprobs"]) - expected).mean() < 1e-5


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/logprobs?adapter=base", {"sequences": [{"prompt": [1, 2], "completion": [3], "images": [PICTURE]}]}),
        (
            "/logprobs?adapter=base",
            {
                "sequences": [
                    {"prompt": {"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "completion": [3]}
                ]
            },
        ),
        (
            "/v1/chat/completions",
            {
                "model": "base",
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}],
                    }
                ],
            },
        ),
    ],
    ids=["ids", "chat", "openai"],
)
def test_pictures_are_refused_in_a_line(text_service: ServiceProcess, route: str, body: dict[str, Any]) -> None:
    with text_service.client() as http:
        answer = http.post(route, json=body)
    assert answer.status_code == 422, answer.text
    assert "the base reads text alone; leave images and videos out, or serve one with vision" in answer.text


def test_chats_by_openais_route(text_service: ServiceProcess) -> None:
    body = {"model": "base", "messages": [{"role": "user", "content": "37+2*4?"}], "max_tokens": 5, "seed": 1}
    with text_service.client() as http:
        answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] <= 5
