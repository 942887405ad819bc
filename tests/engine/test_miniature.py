"""The shipped base in real vLLM: the same prompts as transformers, and the same answers."""

import asyncio
import itertools

import pytest
from PIL import Image

from service.engine.vllm import EngineMedia
from service.media import Video
from trainer.miniature.batch import Prompter
from trainer.miniature.capabilities import CAPABILITIES
from trainer.miniature.drawing import FPS
from trainer.miniature.question import Question, questions
from trainer.miniature.sample import sample

pytestmark = pytest.mark.engine
COUNT = 48


def media_of(question: Question) -> EngineMedia:
    frames = question.scene.render()
    if question.capability.media == "image":
        return EngineMedia(images=((question.digest, Image.fromarray(frames[0])),))
    if question.capability.media == "video":
        return EngineMedia(videos=((question.digest, Video(frames, tuple(range(len(frames))), len(frames), FPS)),))
    return EngineMedia()


@pytest.mark.parametrize("name", ["text", "image", "video"])
def test_vllm_expands_prompts_as_the_base_was_trained_and_answers_alike(name, base, engine_thread) -> None:
    model, processor = base
    engine = engine_thread.engine
    drawn = list(itertools.islice(questions(CAPABILITIES[name], "test", 0, 2), COUNT))
    prompt = Prompter(model, processor)(drawn)
    mark = [] if name == "text" else [{"type": name}]

    async def answer(question: Question):
        content = [*mark, {"type": "text", "text": question.text}]
        ids = engine.chat_ids([{"role": "user", "content": content}])
        return await engine.generate(
            ids, media_of(question), None, n=1, temperature=0, top_p=1, max_tokens=48, top_k=0, seed=None, stop=[]
        )

    async def answers():
        return await asyncio.gather(*(answer(question) for question in drawn))

    outputs = engine_thread.run(answers())
    for ids_T, (expanded, _) in zip(prompt.ids_BT, outputs, strict=True):
        assert expanded == ids_T.tolist()
    texts = [engine.tokenizer.decode(completion.token_ids, skip_special_tokens=True) for _, (completion,) in outputs]
    same = [text == sampled for text, sampled in zip(texts, sample(model, processor, prompt), strict=True)]
    assert sum(same) >= 0.95 * COUNT  # float32 on both sides: only near-ties fall differently
