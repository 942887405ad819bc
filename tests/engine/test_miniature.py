"""The shipped base in real vLLM: the same prompts as transformers, and the same answers."""

import itertools

import pytest
import torch
from PIL import Image
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from adapters.base import locate
from trainer.miniature.batch import Prompter, chat
from trainer.miniature.capabilities import CAPABILITIES
from trainer.miniature.drawing import FPS
from trainer.miniature.question import Question, questions
from trainer.miniature.sample import allowed_tokens, sample

pytestmark = pytest.mark.engine
COUNT = 48


@pytest.fixture(scope="module")
def base():
    model = Qwen3VLForConditionalGeneration.from_pretrained(locate("miniature"), dtype=torch.float32).eval()
    return model, Qwen3VLProcessor.from_pretrained(locate("miniature"))


def request(processor: Qwen3VLProcessor, question: Question) -> dict[str, object]:
    media, frames = question.capability.media, question.scene.render()
    prompt: dict[str, object] = {"prompt": chat(processor, media, question.text)}
    if media == "image":
        prompt["multi_modal_data"] = {"image": Image.fromarray(frames[0])}
    if media == "video":
        metadata = {
            "fps": FPS,
            "frames_indices": list(range(len(frames))),
            "total_num_frames": len(frames),
            "do_sample_frames": False,
        }
        prompt["multi_modal_data"] = {"video": [(frames, metadata)]}
    return prompt


@pytest.mark.parametrize("name", ["text", "image", "video"])
def test_vllm_expands_the_prompts_that_the_base_was_trained_on_and_answers_alike(name, base, engine) -> None:
    from vllm import SamplingParams

    model, processor = base
    asked = list(itertools.islice(questions(CAPABILITIES[name], "test", 0, 2), COUNT))
    prompt = Prompter(model, processor)(asked)
    banned = (~allowed_tokens(model, processor)).nonzero()[:, 0].tolist()
    greedy = SamplingParams(temperature=0, max_tokens=48, logit_bias=dict.fromkeys(banned, -100.0))
    outputs = engine.generate([request(processor, question) for question in asked], greedy, use_tqdm=False)
    for ids_T, output in zip(prompt.ids_BT, outputs, strict=True):
        assert output.prompt_token_ids == ids_T.tolist()
    same = [out.outputs[0].text == text for out, text in zip(outputs, sample(model, processor, prompt), strict=True)]
    assert sum(same) >= 0.85 * COUNT  # bfloat16 against float32: near-ties fall either way
