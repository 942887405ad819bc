"""Questions and answers out of rows as people have them: solutions, options, chats."""

import json

import pytest

from adapters.errors import UserError
from service.media import Limits
from trainer.data.prompts import Prompts
from trainer.data.sources import open_prompts
from trainer.recipe import Columns, DatasetData

GSM8K = [
    {"question": "Two and three?", "answer": "It is #### 4? No: 2 + 3 = <<2+3=5>>5\n#### 5"},
    {"question": "A thousand more?", "answer": "5 + 1,000 = 1,005\n#### 1,005"},
]
SIGNS = {"question": "Which sign stops?", "A": "green", "B": "red", "C": "blue", "D": None}


@pytest.fixture
def opened(tmp_path):
    def open_rows(rows: list[dict], columns: dict, **settings) -> Prompts:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = DatasetData(type="dataset", name=str(file), columns=Columns.model_validate(columns), **settings)
        return open_prompts("maths", data, seed=0, limits=Limits())

    return open_rows


def question(prompts: Prompts, index: int = 0) -> str:
    (message,) = prompts[index].messages
    return "".join(part.get("text", "") for part in message["content"])


def test_the_last_match_of_the_pattern_is_the_answer(opened):
    prompts = opened(GSM8K, {"prompt": "question"}, answer_pattern="#### (.+)")
    assert [prompts[index].answer for index in range(2)] == ["5", "1,005"]
    assert question(prompts) == "Two and three?"


def test_a_row_that_the_pattern_does_not_match_is_named(opened):
    rows = [*GSM8K, {"question": "And?", "answer": "about seven"}]
    with pytest.raises(UserError) as error:
        opened(rows, {"prompt": "question"}, answer_pattern="#### (.+)")
    label, _, rest = str(error.value).partition("rows.jsonl: ")
    assert label
    assert rest == ("row 3: column 'answer': answer_pattern '#### (.+)' matches nowhere in ...'about seven'; mend it")
    assert len(opened(rows, {"prompt": "question"}, answer_pattern="#### (.+)", on_unreadable="drop")) == 2


@pytest.mark.parametrize(
    ("answer", "form", "letter"),
    [
        ("B", None, "B"),
        ("(b).", None, "B"),
        ("red", None, "B"),
        (1, None, "B"),
        (1.0, None, "B"),
        ("1", "index", "B"),
        ("2", "number", "B"),
        (2, "number", "B"),
        ("B", "letter", "B"),
        ("red", "text", "B"),
    ],
)
def test_an_answer_becomes_the_letter_of_its_option(opened, answer, form, letter):
    rows = [SIGNS | {"answer": answer}]
    prompts = opened(rows, {"prompt": "question", "options": ["A", "B", "C", "D"]}, answer_as=form)
    assert prompts[0].answer == letter
    assert question(prompts) == "Which sign stops?\nA. green\nB. red\nC. blue"


@pytest.mark.parametrize(
    ("choices", "answer", "form", "message"),
    [
        (["1", "2", "3"], 2, None, "answer 2 means more than one of the options '1', '2', '3'; set answer_as"),
        (["B", "A"], "A", None, "answer 'A' means more than one of the options 'B', 'A'; set answer_as"),
        (["up", "down"], "1", None, 'set answer_as = "index" if it counts from 0, "number" if from 1'),
        (["up", "down"], "C", None, "neither a letter nor the text of the options 'up', 'down'"),
        (["up", "down"], 2, "index", "no index of the options 'up', 'down'"),
        (["up", "down"], 0, "number", "no number of the options 'up', 'down'"),
        (["up", "up"], "up", None, "means more than one of the options"),
        (["up", "", "down"], "up", None, "option B is empty"),
        (["up"], "up", None, "1 options; a question has 2 to 26"),
        (["up", "<|im_end|>"], "up", None, "control token"),
    ],
)
def test_an_answer_that_may_be_wrong_is_refused(opened, choices, answer, form, message):
    rows = [{"question": "Where?", "choices": choices, "answer": answer}]
    with pytest.raises(UserError, match="row 1: column") as error:
        opened(rows, {"prompt": "question", "options": "choices"}, answer_as=form)
    assert message in str(error.value)


def test_a_dot_reaches_options_in_an_object_as_in_arc(opened):
    choices = {"text": ["air", "iron"], "label": ["A", "B"]}
    rows = [{"question": "Which is heavy?", "choices": choices, "answerKey": "B"}]
    columns = {"prompt": "question", "answer": "answerKey", "options": "choices.text"}
    assert question(opened(rows, columns)) == "Which is heavy?\nA. air\nB. iron"


def test_the_last_assistants_message_answers_a_chat(opened):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Two and three?"},
        {"role": "assistant", "content": [{"type": "text", "text": "2 + 3 = 5\n#### 5"}]},
    ]
    columns = {"prompt": "messages", "answer": "messages"}
    prompts = opened([{"messages": chat}], columns, answer_pattern="#### (.+)")
    assert [message["role"] for message in prompts[0].messages] == ["system", "user"]
    assert prompts[0].answer == "5"


def test_an_answer_column_stands_for_the_last_message_of_a_chat(opened):
    chat = [{"role": "user", "content": "Two and three?"}, {"role": "assistant", "content": "five, I think"}]
    prompts = opened([{"messages": chat, "answer": 5}], {"prompt": "messages"})
    assert (prompts[0].answer, question(prompts)) == ("5", "Two and three?")


def test_options_stand_behind_the_last_message_of_a_chat(opened):
    row = {"messages": [{"role": "user", "content": "Stop?"}], "choices": ["red", "green"], "answer": "red"}
    prompts = opened([row], {"prompt": "messages", "options": "choices"}, suffix="A letter.")
    assert question(prompts) == "Stop?\nA. red\nB. green\nA letter."


def test_a_chat_that_the_user_ends_has_no_answer_in_it(opened):
    rows = [{"messages": [{"role": "user", "content": "Two and three?"}]}]
    with pytest.raises(UserError, match="row 1: column 'messages': the last message is not the assistant's"):
        opened(rows, {"prompt": "messages", "answer": "messages"})


def test_a_missing_option_column_is_told_with_its_key(opened):
    with pytest.raises(UserError, match=r"no column 'E'; set capabilities\.maths\.data\.columns\.options to one of"):
        opened([SIGNS | {"answer": "B"}], {"prompt": "question", "options": ["A", "E"]})
