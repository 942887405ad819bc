"""Batches equal what the processor makes of each question alone."""

import itertools

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from trainer.miniature.batch import Prompter, chat, media_arguments
from trainer.miniature.build import completion_ids, completion_loss
from trainer.miniature.capabilities import CAPABILITIES
from trainer.miniature.model import build_config, build_processor, build_tokenizer
from trainer.miniature.question import questions
from trainer.miniature.sample import allowed_tokens, sample
from trainer.realbase.questions import CAPABILITIES as WORDED

LOOKING = [name for name, capability in CAPABILITIES.items() if capability.media != "none"]
WORDS = [word for capability in CAPABILITIES.values() for word in capability.words]


@pytest.fixture(scope="module")
def processor():
    return build_processor(build_tokenizer(WORDS))


@pytest.fixture(scope="module")
def model(processor):
    torch.manual_seed(0)
    return Qwen3VLForConditionalGeneration(build_config(processor.tokenizer)).eval()


@pytest.mark.parametrize("name", sorted(CAPABILITIES))
def test_a_batch_equals_the_processors_output_and_the_models_own_positions(name, model, processor) -> None:
    batch = list(itertools.islice(questions(CAPABILITIES[name], "train", 0, 2), 3))
    prompt = Prompter(model, processor)(batch)
    with torch.inference_mode():
        logits_BV = model(input_ids=prompt.ids_BT, position_ids=prompt.positions_3BT, **prompt.pixels).logits[:, -1]
        for row, question in enumerate(batch):
            media = question.capability.media
            inputs = processor(
                text=[chat(processor, media, question.text)],
                return_tensors="pt",
                **media_arguments(media, question.scene.render()),
            )
            assert inputs["input_ids"][0].tolist() == prompt.ids_BT[row].tolist()
            torch.testing.assert_close(model(**inputs).logits[0, -1], logits_BV[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(LOOKING))
def test_patches_equal_the_processors(name, model, processor) -> None:
    batch = list(itertools.islice(questions(CAPABILITIES[name], "train", 0, 1), 2))
    pixels, media = Prompter(model, processor)(batch).pixels, CAPABILITIES[name].media
    alone = [processor(text=[chat(processor, media, "?")], return_tensors="pt",
                       **media_arguments(media, question.scene.render())) for question in batch]  # fmt: skip
    for key, values in pixels.items():
        torch.testing.assert_close(values, torch.cat([inputs[key] for inputs in alone]), atol=1e-6, rtol=0)


def test_words_and_marks_are_one_token_and_any_text_comes_back(processor) -> None:
    tokenizer = processor.tokenizer
    for word in (*WORDS, "<|im_end|>", "\\boxed", "plain"):
        assert len(tokenizer(word)["input_ids"]) == 1
    text = "arrowred2 \\boxed{37} \u00e9\u4e2d\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_greedy_samples_equal_transformers_generate(model, processor) -> None:
    (question,) = itertools.islice(questions(CAPABILITIES["image"], "train", 0, 1), 1)
    inputs = processor(text=[chat(processor, "image", question.text)], return_tensors="pt",
                       **media_arguments("image", question.scene.render()))  # fmt: skip
    banned = (~allowed_tokens(model, processor)).nonzero()[:, 0].tolist()
    ids = model.generate(**inputs, max_new_tokens=48, do_sample=False, suppress_tokens=banned)
    expected = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert sample(model, processor, Prompter(model, processor)([question])) == [expected]


def test_sampling_is_a_function_of_its_seed(model, processor) -> None:
    prompt = Prompter(model, processor)(list(itertools.islice(questions(CAPABILITIES["text"], "train", 0, 1), 2)))
    first, again, another = (sample(model, processor, prompt, n=3, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert len(first) == 6
    assert first == again != another


def test_completions_end_with_the_end_mark_and_are_padded(processor) -> None:
    short, long = completion_ids(processor, ["1", "123"]).tolist()
    tokenizer = processor.tokenizer
    assert long[-1] == short[1] == tokenizer.eos_token_id
    assert short[2:] == [tokenizer.pad_token_id] * 2


@pytest.mark.parametrize("name", sorted(WORDED))
def test_questions_of_unequal_length_are_read_and_answered_as_alone(name: str, model, processor) -> None:
    batch = list(itertools.islice(questions(WORDED[name], "train", 0), 6))
    prompt, prompter = Prompter(model, processor)(batch), Prompter(model, processor)
    assert prompt.mask_BT is not None
    together = sample(model, processor, prompt, max_tokens=8)
    with torch.inference_mode():
        logits_BV = model(
            input_ids=prompt.ids_BT, position_ids=prompt.positions_3BT, attention_mask=prompt.mask_BT, **prompt.pixels
        ).logits[:, -1]
        for row, question in enumerate(batch):
            media = question.capability.media
            inputs = processor(text=[chat(processor, media, question.text)], return_tensors="pt",
                               **media_arguments(media, question.scene.render()))  # fmt: skip
            torch.testing.assert_close(model(**inputs).logits[0, -1], logits_BV[row], atol=1e-5, rtol=1e-4)
            assert sample(model, processor, prompter([question]), max_tokens=8) == [together[row]]


def test_padding_of_a_question_changes_no_loss(model, processor) -> None:
    drawn = itertools.islice(questions(WORDED["text"], "train", 0), 2)
    short, long = sorted(drawn, key=lambda question: len(question.text))
    prompter, completion_1C = Prompter(model, processor), completion_ids(processor, ["First"])
    with torch.inference_mode():
        alone = [completion_loss(model, prompter([question]), completion_1C) for question in (short, long)]
        both = completion_loss(model, prompter([short, long]), completion_1C.expand(2, -1))
    torch.testing.assert_close(both, sum(alone) / 2, atol=1e-5, rtol=1e-5)
