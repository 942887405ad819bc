"""Prompts: chat messages, marks and media, hashes, and which prompts a step gets."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.prompts import PromptError, PromptList, draw, make_prompt


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def content(*args, **kwargs) -> list:
    return make_prompt("image", *args, **kwargs).messages[-1]["content"]


def test_media_that_no_mark_names_go_first_and_images_before_videos():
    assert content("what?", 1, [b"a", b"b"], [b"c"]) == [IMAGE, IMAGE, VIDEO, text("what?")]


def test_marks_in_the_text_say_where_media_go():
    assert content("<image>\nor <image>?", 1, [b"a", b"b"]) == [IMAGE, text("\nor "), IMAGE, text("?")]
    assert content("see <image>", 1, [b"a"], [b"v"]) == [VIDEO, text("see "), IMAGE]


def test_chat_messages_are_taken_with_their_marks():
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a?", "image": None}, {"type": "image", "text": None}]},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "<image>b?"},
    ]
    prompt = make_prompt("image", messages, "b", [b"1", b"2"])
    assert [message["role"] for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert prompt.messages[1]["content"] == [text("a?"), IMAGE]
    assert prompt.messages[3]["content"] == [IMAGE, text("b?")]


def test_media_without_marks_go_into_the_first_message_of_the_user():
    messages = [
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b?"},
    ]
    assert make_prompt("image", messages, "b", [b"1"]).messages[0]["content"] == [IMAGE, text("a?")]


def test_system_and_suffix_are_put_around_the_question():
    prompt = make_prompt("text", "1+1?", 2, system="be brief", suffix=r"Answer in \boxed{}.")
    assert prompt.messages == (
        {"role": "system", "content": [text("be brief")]},
        {"role": "user", "content": [text("1+1?\nAnswer in \\boxed{}.")]},
    )
    assert prompt.answer == "2"


@pytest.mark.parametrize(
    ("question", "answer", "images", "message", "reason"),
    [
        ("<image><image>?", 1, 1, "2 <image> marks for 1 image", "marks"),
        ("<image>?", 1, 0, "1 <image> mark for 0 images", "marks"),
        ("<video>?", 1, 1, "1 <video> mark for 0 videos", "marks"),
        ("?", "", 0, "the answer is empty", "answer"),
        ("?", " \n", 0, "the answer is empty", "answer"),
        ("?", None, 0, "the answer is empty", "answer"),
        ("?", True, 0, "the answer is a bool, not a text or a number", "answer"),
        ("?", ["1"], 0, "the answer is a list, not a text or a number", "answer"),
        ("", 1, 0, "the question is empty", "prompt"),
        ("\n", 1, 0, "the question is empty", "prompt"),
        ([], 1, 0, "the last message is not the user's", "prompt"),
        ([{"role": "assistant", "content": "a"}], 1, 0, "the last message is not the user's", "prompt"),
        ([{"role": "tool", "content": "a"}], 1, 0, "a message's role is 'tool', not system, user, assistant", "prompt"),
        ([{"role": "user", "content": 7}], 1, 0, "a message's content is neither a text nor a list", "prompt"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], 1, 0, "a part of a message is", "prompt"),
        ("a <|image_pad|>?", 1, 0, "the text holds <|image_pad|>, which a tokenizer reads as", "control-token"),
    ],
)
def test_what_cannot_be_a_prompt_is_refused_with_a_reason(question, answer, images, message, reason):
    with pytest.raises(PromptError) as caught:
        make_prompt("image", question, answer, [b"x"] * images)
    assert str(caught.value).startswith(message)
    assert caught.value.reason == reason


def test_two_system_messages_are_refused():
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(PromptError, match="keep one of them"):
        make_prompt("text", messages, 1, system="c")


def test_the_id_tells_prompts_apart_by_everything_they_hold():
    variants = [
        make_prompt("text", "q", "a"),
        make_prompt("image", "q", "a"),
        make_prompt("text", "r", "a"),
        make_prompt("text", "q", "b"),
        make_prompt("text", "q", "a", [b"1"]),
        make_prompt("text", "q", "a", [b"2"]),
        make_prompt("text", "q", "a", [], [b"1"]),
        make_prompt("text", "q", "a", suffix="s"),
        make_prompt("text", "q", "a", system="s"),
    ]
    assert len({prompt.id for prompt in variants}) == len(variants)
    assert make_prompt("text", "q", "a") == variants[0]
    assert make_prompt("text", [{"role": "user", "content": [text("q")]}], "a") == variants[0]


def numbered(size: int) -> PromptList:
    return PromptList([make_prompt("text", f"{number}?", number) for number in range(size)])


@given(size=st.integers(1, 40), count=st.integers(1, 60), epochs=st.integers(1, 4), seed=st.integers(0, 2**63))
def test_every_epoch_covers_each_prompt_exactly_once_whatever_the_batch(size, count, epochs, seed):
    prompts = numbered(size)
    steps = -(-size * epochs // count)
    drawn = [i for step in range(steps) for i in draw(prompts, seed=seed, branch="text", step=step, count=count)]
    for epoch in range(epochs):
        assert Counter(drawn[epoch * size : (epoch + 1) * size]) == Counter(range(size))


@given(st.integers(0, 200), st.integers(1, 20))
def test_a_step_gets_the_same_prompts_whatever_was_drawn_before(step, count):
    prompts = numbered(30)
    alone = draw(prompts, seed=1, branch="text", step=step, count=count)
    for earlier in range(step):
        draw(prompts, seed=1, branch="text", step=earlier, count=count)
    assert draw(numbered(30), seed=1, branch="text", step=step, count=count) == alone


def test_each_seed_branch_epoch_and_data_set_has_its_own_order():
    first = draw(numbered(50), seed=1, branch="text", step=0, count=50)
    further = [
        draw(numbered(50), seed=2, branch="text", step=0, count=50),
        draw(numbered(50), seed=1, branch="image", step=0, count=50),
        draw(numbered(50), seed=1, branch="text", step=1, count=50),
        draw(PromptList(numbered(51).prompts[1:]), seed=1, branch="text", step=0, count=50),
    ]
    assert all(sorted(order) == sorted(first) for order in further)
    assert len({first, *further}) == 5


def test_the_order_never_changes_between_releases():
    prompts = PromptList([make_prompt("text", "q", number) for number in range(8)])
    assert draw(prompts, seed=7, branch="text", step=0, count=8) == (7, 5, 0, 4, 2, 1, 3, 6)
