"""The paper's benchmarks: that their sets fit the recipe, and that rows as their sources have them become questions."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value

from recipes.parts.prepare_benchmarks import (
    BENCHMARKS,
    Part,
    Question,
    bare,
    main,
    mathverse,
    mathvision,
    mathvista,
    mmmu,
    mmmu_pro,
    mmvu,
    mvbench,
    questions,
    video_holmes,
    videomathqa,
    wemath,
    write,
)
from service.media import Limits, encode_image, encode_video
from trainer.data.sources import open_prompts
from trainer.recipe import DatasetData
from trainer.recipe.file import load
from trainer.rewards import Rule
from trainer.rewards import load as load_reward

RECIPE = load(Path(__file__).parents[3] / "recipes" / "paper-copd3-benchmarks.toml")
SETS = RECIPE.evaluation.sets
LOCAL = {name: benchmark for name, benchmark in SETS.items() if benchmark.data.name.startswith("data/benchmarks/")}

RED, BLUE = (encode_image(np.full((8, 12, 3), colour, np.uint8)) for colour in ((255, 0, 0), (0, 0, 255)))
CLIP = encode_video(np.zeros((4, 8, 12, 3), np.uint8), 2.0)


def picture(data: bytes = RED) -> dict:
    return {"bytes": data, "path": "any.png"}


def data_of(name: str) -> DatasetData:
    data = SETS[name].data
    assert isinstance(data, DatasetData)
    return data


def text_of(prompt) -> str:
    return "".join(part.get("text", f"<{part['type']}>") for part in prompt.messages[-1]["content"])


# ---- the sets ----


def test_every_benchmark_of_the_paper_counts_for_its_capability():
    names = {
        capability: [name for name, benchmark in SETS.items() if benchmark.capability == capability]
        for capability in RECIPE.capabilities
    }
    assert names == {
        "text": ["aime24", "aime25", "hmmt25", "math500", "minerva"],
        "image": ["mmmu", "mmmu-pro", "mathvista", "mathvision", "zerobench-sub", "wemath", "mathverse"],
        "video": ["video-holmes", "mvbench", "mmvu", "videomathqa"],
    }


def test_answers_are_as_many_as_the_paper_says_and_the_greedy_one():
    sampled = {name: benchmark.answers.samples for name, benchmark in SETS.items() if benchmark.answers.samples}
    image = {"mmmu": 2, "mathvista": 2, "zerobench-sub": 2, "wemath": 2}
    assert sampled == {"aime24": 16, "aime25": 16, "hmmt25": 4, "math500": 4, "minerva": 4, **image}
    answers = [SETS[name].answers for name in sampled]
    assert {(answer.temperature, answer.top_p) for answer in answers} == {(0.7, 0.8)}
    assert all(benchmark.answers.greedy for benchmark in SETS.values())


def test_every_prompt_asks_for_a_box_and_where_needed_a_letter():
    for name, benchmark in SETS.items():
        assert r"\boxed{}" in data_of(name).suffix
        assert benchmark.reward.kind in ("math", "choice")
        assert benchmark.reward.kind != "choice" or "the letter of the right option" in data_of(name).suffix


def test_what_has_no_columns_for_the_recipe_is_prepared_and_nothing_else():
    assert {name: benchmark.data.name for name, benchmark in LOCAL.items()} == {
        name: f"data/benchmarks/{name}.jsonl" for name in BENCHMARKS
    }
    for name in LOCAL:
        columns = data_of(name).columns
        assert (columns.prompt, columns.answer) == ("prompt", "answer")


def test_a_video_of_the_most_frames_fits_with_its_question():
    from trainer.data.lengths import most_video_tokens, pixels_of
    from trainer.data.rows import VideoHeader

    longest = max(
        most_video_tokens(VideoHeader(size, None), pixels_of(RECIPE.media), stamp=10)
        for size in ((720, 1280), (1080, 1920), (480, 640), (1280, 720))
    )
    assert longest + 1024 <= RECIPE.rollout.max_prompt_tokens


# Rows of the hub's data sets that are read as they are.
DIRECT = {
    "aime24": ({"id": 60, "problem": "Every morning Aya", "solution": "..", "answer": "204", "year": "2024"}, "204"),
    "aime25": ({"problem_idx": 1, "problem": "Find the sum", "answer": 70, "problem_type": ["Algebra"]}, "70"),
    "hmmt25": ({"problem_idx": 2, "problem": "Compute", "answer": r"\frac{1}{576}"}, r"\frac{1}{576}"),
    "math500": (
        {"problem": "Convert the point", "solution": "..", "answer": r"\left( 3, \frac{\pi}{2} \right)", "level": 2},
        r"\left( 3, \frac{\pi}{2} \right)",
    ),
    "minerva": ({"question": "Each of the two", "answer": "4.5e33"}, "4.5e33"),
    "zerobench-sub": (
        {"question_id": "1_1", "question_text": "How many?", "question_answer": "11", "question_images_decoded": []},
        "11",
    ),
}


@pytest.mark.parametrize("name", DIRECT)
def test_rows_of_the_hub_are_read_through_the_columns_of_their_set(name, tmp_path):
    row, answer = DIRECT[name]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    data = data_of(name).model_copy(update={"name": str(file), "split": "train"})
    (prompt,) = open_prompts(name, data, seed=0, limits=Limits())
    assert prompt.answer == answer
    assert text_of(prompt).endswith(data.suffix)
    assert_judged(name, answer)


def test_what_is_read_as_it_is_and_what_is_prepared_are_all():
    assert set(DIRECT) | set(BENCHMARKS) == set(SETS)


def assert_judged(name: str, answer: str) -> None:
    """The reward of the set takes the answer, and gives 1 for it and 0 for another."""
    score = load_reward(Rule(SETS[name].reward.kind))
    assert score(rf"So it is \boxed{{{answer}}}.", answer) == 1
    assert score(rf"So it is \boxed{{{'B' if answer == 'A' else 'A'}}}.", answer) == 0


# ---- rows as their sources have them ----

MMMU = {
    "id": "validation_Accounting_1",
    "question": "<image 1> Baxter Company has a relevant range. What is the cost?",
    "options": "['$6', '$7', '$8', '$9']",
    "image_1": picture(),
    **{f"image_{number}": None for number in range(2, 8)},
    "answer": "B",
    "question_type": "multiple-choice",
}
MMMU_PRO = {
    "id": "test_Design_19",
    "question": "Which is hers?",
    "options": "['<image 2>', '<image 1>', 'neither', 'A', 'B', 'C', 'D', 'E', 'F', 'all']",
    "image_1": picture(),
    "image_2": picture(BLUE),
    **{f"image_{number}": None for number in range(3, 8)},
    "answer": "J",
    "subject": "Design",
}
MATHVISTA = {
    "pid": "6",
    "question": "What fraction of the shape is blue?",
    "decoded_image": picture(),
    "choices": ["3/11", "8/11", "6/11"],
    "precision": None,
    "answer": "8/11",
    "question_type": "multi_choice",
    "query": "Hint: Please provide the correct option letter, e.g., A, at the end.\nQuestion: What fraction?\nChoices:",
}
MATHVISION = {
    "id": "2",
    "question": "Which bike is most expensive?\n<image1>",
    "options": ["A", "B", "C", "D", "E"],
    "image": "images/2.jpg",
    "decoded_image": picture(),
    "answer": "A",
}
WEMATH = {
    "ID": "2steps_1",
    "question": "OA = ( ) m, AB = ( ) m",
    "option": "A. 300, 400;B. 400, 300;C. 3000, 4000;D. 4000, 3000; E. No correct answer",
    "answer": "C",
    "image_path": picture(),
    "key": "2steps_1",
}
MATHVERSE = {
    "problem_version": "Vision Only",
    "question": "",
    "image": picture(),
    "answer": r"Area $=9 \pi \mathrm{cm}^{2}$",
    "question_type": "free-form",
    "query_cot": "According to the question shown in the image, please first conduct reasoning.",
}
HOLMES = {
    "video ID": "RSmjqss0XKQ",
    "Question ID": 1,
    "Question Type": "SR",
    "Question": "Who is he?",
    "Options": {"B": "Her brother", "A": "Her husband", "C": "A thief", "D": "x", "E": "y", "F": "z"},
    "Answer": "F",
}
MVBENCH = {
    "video": "ZS9XR.mp4",
    "question": "What happened after the person took the food?",
    "candidates": ["Ate the medicine.", "Tidied up the blanket.", "Put down the cup."],
    "answer": "Ate the medicine.",
}
MMVU = {
    "id": "validation_1",
    "video": "https://huggingface.co/datasets/yale-nlp/MMVU/resolve/main/videos/Chemistry/0.mp4",
    "question_type": "multiple-choice",
    "question": "How many grams of precipitate?",
    "choices": {"A": "5.0", "B": "10.0", "C": "15.0", "D": "20.0", "E": "2.24"},
    "answer": "B",
}
VIDEOMATHQA = {
    "videoID": "abc-1",
    "question_id": 7,
    "question": "What is the angle?",
    "options": ["A. 30", "B. 45", "C. 60", "D. 75", "E. 90"],
    "answer": "E",
}


@pytest.mark.parametrize(
    ("name", "question", "expected"),
    [
        (
            "mmmu",
            mmmu(MMMU),
            Question(f"{MMMU['question']}\nA. $6\nB. $7\nC. $8\nD. $9", "B", (picture(),)),
        ),
        (
            "mmmu",
            mmmu(MMMU | {"options": "[]", "answer": "['24/7', '3.429']", "question_type": "open"}),
            Question(MMMU["question"], "24/7", (picture(),)),
        ),
        (
            "mmmu-pro",
            mmmu_pro(MMMU_PRO),
            Question(
                "Which is hers?\nA. <image 2>\nB. <image 1>\nC. neither\nD. A\nE. B\nF. C\nG. D\nH. E\nI. F\nJ. all",
                "J",
                (picture(), picture(BLUE)),
            ),
        ),
        (
            "mmmu-pro",
            mmmu_pro({"id": "test_History_1", "image": picture(), "options": "['a', 'b']", "answer": "B"}),
            Question("Solve the multiple-choice question in the image.", "B", (picture(),)),
        ),
        ("mathvista", mathvista(MATHVISTA), Question(MATHVISTA["query"], "B", (picture(),))),
        (
            "mathvista",
            mathvista(MATHVISTA | {"choices": None, "answer": "1.2", "precision": 1}),
            Question(MATHVISTA["query"], "1.2", (picture(),)),
        ),
        ("mathvision", mathvision(MATHVISION), Question(MATHVISION["question"], "A", (picture(),))),
        (
            "mathvision",
            mathvision(MATHVISION | {"options": ["$4$", "5", "6", "7", "8"], "answer": "E"}),
            Question(f"{MATHVISION['question']}\nA. $4$\nB. 5\nC. 6\nD. 7\nE. 8", "E", (picture(),)),
        ),
        (
            "mathvision",
            mathvision(MATHVISION | {"options": [], "answer": "60"}),
            Question(MATHVISION["question"], "60", (picture(),)),
        ),
        ("wemath", wemath(WEMATH), Question(f"{WEMATH['question']}\n{WEMATH['option']}", "C", (picture(),))),
        ("mathverse", mathverse(MATHVERSE), Question(MATHVERSE["query_cot"], r"9 \pi", (picture(),))),
        (
            "video-holmes",
            video_holmes(HOLMES),
            Question(
                "Who is he?\nA. Her husband\nB. Her brother\nC. A thief\nD. x\nE. y\nF. z",
                "F",
                videos=("video-holmes/videos/RSmjqss0XKQ.mp4",),
            ),
        ),
        (
            "mvbench",
            mvbench(MVBENCH, "star/Charades_segment"),
            Question(
                f"{MVBENCH['question']}\nA. Ate the medicine.\nB. Tidied up the blanket.\nC. Put down the cup.",
                "A",
                videos=("mvbench/star/Charades_segment/ZS9XR.mp4",),
            ),
        ),
        (
            "mmvu",
            mmvu(MMVU),
            Question(
                f"{MMVU['question']}\nA. 5.0\nB. 10.0\nC. 15.0\nD. 20.0\nE. 2.24",
                "B",
                videos=("mmvu/videos/Chemistry/0.mp4",),
            ),
        ),
        (
            "videomathqa",
            videomathqa(VIDEOMATHQA),
            Question(
                "What is the angle?\nA. 30\nB. 45\nC. 60\nD. 75\nE. 90", "E", videos=("videomathqa/videos/abc-1.mp4",)
            ),
        ),
    ],
)
def test_a_row_becomes_a_question_with_an_answer_that_its_reward_takes(name, question, expected):
    assert question == expected
    assert_judged(name, question.answer)


def test_open_questions_of_mmvu_are_not_asked():
    assert mmvu(MMVU | {"question_type": "open-ended", "choices": dict.fromkeys("ABCDE", "")}) is None


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (r"Volume $=367.57 \mathrm{~cm}^{3}$", "367.57"),
        (r"$\mathrm{SA}=3298.67 \mathrm{~cm}^{2}$", "3298.67"),
        ("S.A. $=1209.84$", "1209.84"),
        (r"8128.50 \text { units }^2", "8128.50"),
        ("Surface Area $=603.186$ units $^{2}$", "603.186"),
        ("Weekly water intake $=15.5$ Litres", "15.5"),
        ("$1690cm^2$", "1690"),
        ("3799 km", "3799"),
        ("Center $=(20,10)$", "(20,10)"),
        ("slope =-4", "-4"),
        ("$-\\frac{3}{2}x+3$", "$-\\frac{3}{2}x+3$"),
        ("y=-2 x+5", "y=-2 x+5"),
        ("f(x)=|x-3|", "f(x)=|x-3|"),
        ("(C)", "(C)"),
        ("45^\\circ ", "45^\\circ "),
        ("Bugs Bunny", "Bugs Bunny"),
    ],
)
def test_answers_of_mathverse_are_taken_without_their_names_and_units(answer, value):
    assert bare(answer) == value


# ---- into files, and out of them ----


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_pictures_are_written_once_and_the_file_is_what_the_set_reads(tmp_path):
    rows = [mmmu_pro(MMMU_PRO), mmmu_pro(MMMU_PRO | {"question": "And which is not?", "answer": "A"})]
    assert write("mmmu-pro", rows, tmp_path) == (2, 0)
    assert len(list((tmp_path / "mmmu-pro").iterdir())) == 2
    data = data_of("mmmu-pro").model_copy(update={"name": str(tmp_path / "mmmu-pro.jsonl")})
    prompts = open_prompts("mmmu-pro", data, seed=0, limits=Limits())
    assert [prompts[index].answer for index in range(2)] == ["J", "A"]
    assert prompts[0].images == (RED, BLUE)
    assert text_of(prompts[0]).startswith("<image><image>Which is hers?\nA. <image 2>\nB. <image 1>")
    assert text_of(prompts[0]).endswith(data.suffix)


def test_questions_without_their_video_are_left_out_and_counted(tmp_path):
    folder = tmp_path / "videomathqa" / "videos"
    folder.mkdir(parents=True)
    (folder / "abc-1.mkv").write_bytes(CLIP)
    rows = [videomathqa(VIDEOMATHQA), videomathqa(VIDEOMATHQA | {"videoID": "abc"})]
    assert write("videomathqa", rows, tmp_path) == (1, 1)
    assert [row["videos"] for row in rows_of(tmp_path / "videomathqa.jsonl")] == [["videomathqa/videos/abc-1.mkv"]]
    data = SETS["videomathqa"].data.model_copy(update={"name": str(tmp_path / "videomathqa.jsonl")})
    (prompt,) = open_prompts("videomathqa", data, seed=0, limits=Limits())
    assert prompt.videos == (CLIP,)


def test_a_file_is_whole_or_as_it_was(tmp_path):
    write("mmmu", [mmmu(MMMU)], tmp_path)
    before = (tmp_path / "mmmu.jsonl").read_text()

    def broken():
        yield mmmu(MMMU | {"answer": "C"})
        raise ConnectionError

    with pytest.raises(ConnectionError):
        write("mmmu", broken(), tmp_path)
    assert (tmp_path / "mmmu.jsonl").read_text() == before


def test_rows_come_through_datasets_with_their_pictures_encoded(tmp_path):
    features = Features(
        {"question": Value("string"), "option": Value("string"), "answer": Value("string"), "image_path": Image()}
    )
    rows = Dataset.from_list([{key: WEMATH[key] for key in features}], features=features)
    file = tmp_path / "testmini.parquet"
    rows.to_parquet(file)
    (question,) = questions([Part({"path": "parquet", "data_files": str(file), "split": "train"}, wemath)])
    assert question.images[0]["bytes"] == RED
    assert question.answer == "C"


@pytest.mark.parametrize("name", LOCAL)
def test_sets_name_media_of_the_right_kind(name):
    data = LOCAL[name].data
    assert isinstance(data, DatasetData)
    kind = "videos" if LOCAL[name].capability == "video" else "images"
    assert data.columns.model_dump(exclude_none=True) == {"prompt": "prompt", "answer": "answer", kind: kind}


def test_the_command_counts_questions_and_names_what_cannot_be_had(tmp_path, monkeypatch, capsys):
    rows = tmp_path / "mcq.jsonl"
    rows.write_text(json.dumps(VIDEOMATHQA) + "\n")
    here = {"path": "json", "data_files": str(rows), "split": "train"}
    monkeypatch.setitem(BENCHMARKS, "videomathqa", [Part(here, videomathqa)])
    main(["videomathqa", "--out", str(tmp_path)])
    line = f"{tmp_path}/videomathqa.jsonl: 0 questions, 1 left out: no video of theirs in {tmp_path}/videomathqa\n"
    assert capsys.readouterr().out == line
    monkeypatch.setitem(BENCHMARKS, "wemath", [Part(here | {"data_files": str(tmp_path / "none.jsonl")}, wemath)])
    with pytest.raises(SystemExit, match=r"^wemath: Unable to find .*none\.jsonl"):
        main(["wemath", "--out", str(tmp_path)])
