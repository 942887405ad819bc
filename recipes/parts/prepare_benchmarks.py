"""Brings benchmarks whose rows are no prompts yet into the form that `benchmarks.toml` reads.

    python recipes/parts/prepare_benchmarks.py --out data/benchmarks mmmu mathvista

Each becomes OUT/NAME.jsonl: `prompt`, `answer`, and `images` or `videos` as paths that start from OUT. Images come with
the rows and are written to OUT/NAME/. Videos must be in OUT/NAME/ before (docs/evaluation.md); a question without its
video is left out, and how many were is told.

Pictures stand before the question, and `<image 1>` in it stays as it is: the way in which Qwen3-VL was measured.
"""

import argparse
import ast
import glob
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any, cast

import datasets

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    prompt: str
    answer: str
    images: tuple[Row, ...] = ()
    """Encoded, as `datasets` gives them: `bytes` and `path`."""
    videos: tuple[str, ...] = ()
    """Under the folder of all benchmarks."""


# ---- from a row to a question; None: it is not asked ----


def mmmu(row: Row) -> Question:
    numbered = (row.get(f"image_{number}") for number in range(1, 8))
    prompt = _with_options(row["question"], ast.literal_eval(row["options"]))
    return Question(prompt, _first(row["answer"]), tuple(image for image in numbered if image is not None))


def mmmu_pro(row: Row) -> Question:
    """A question with ten options, or a picture that shows both."""
    if "question" in row:
        return mmmu(row)
    return Question("Solve the multiple-choice question in the image.", row["answer"], (row["image"],))


def mathvista(row: Row) -> Question:
    """Of several options the answer is one's text; `query` letters them, and asks for the right number of decimals."""
    choices = row["choices"]
    answer = _letter(choices, row["answer"]) if choices else row["answer"]
    return Question(row["query"], answer, (row["decoded_image"],))


def mathvision(row: Row) -> Question:
    """Options that are but letters stand in the picture."""
    options: Sequence[str] = row["options"]
    shown = [] if "".join(options) == ascii_uppercase[: len(options)] else options
    return Question(_with_options(row["question"], shown), row["answer"], (row["decoded_image"],))


def wemath(row: Row) -> Question:
    return Question(f"{row['question']}\n{row['option']}", row["answer"], (row["image_path"],))


def mathverse(row: Row) -> Question:
    """In its vision-only version the question stands in the picture, and `query_cot` says so."""
    return Question(row["query_cot"], bare(row["answer"]), (row["image"],))


def video_holmes(row: Row) -> Question:
    options = "\n".join(f"{letter}. {text}" for letter, text in sorted(row["Options"].items()) if text)
    return Question(f"{row['Question']}\n{options}", row["Answer"], videos=(_video("video-holmes", row["video ID"]),))


def mvbench(row: Row, folder: str) -> Question:
    """The answer is the text of a candidate."""
    prompt = _with_options(row["question"], row["candidates"])
    answer = _letter(row["candidates"], row["answer"])
    return Question(prompt, answer, videos=(f"mvbench/{folder}/{row['video']}",))


def mmvu(row: Row) -> Question | None:
    """Multiple choice alone, as in the paper."""
    if row["question_type"] != "multiple-choice":
        return None
    prompt = _with_options(row["question"], [row["choices"][letter] for letter in "ABCDE"])
    return Question(prompt, row["answer"], videos=(f"mmvu/{row['video'].partition('/resolve/main/')[2]}",))


def videomathqa(row: Row) -> Question:
    """Its options are lettered already. Without subtitles."""
    prompt = "\n".join([row["question"], *row["options"]])
    return Question(prompt, row["answer"], videos=(_video("videomathqa", row["videoID"]),))


def _with_options(question: str, options: Sequence[str]) -> str:
    return "\n".join([question, *(f"{ascii_uppercase[place]}. {text}" for place, text in enumerate(options))])


def _letter(options: Sequence[str], answer: str) -> str:
    return ascii_uppercase[list(options).index(answer)]


def _first(answer: str) -> str:
    """Of several spellings of the same answer, which stand there as a list of Python's."""
    return ast.literal_eval(answer)[0] if answer.startswith("['") else answer


def _video(benchmark: str, name: str) -> str:
    return f"{benchmark}/videos/{name}.mp4"


_WHAT = re.compile(r"^\s*\$?\s*(?:\\mathrm\{\w+\}|[A-Za-z.]{2,}(?:\s[A-Za-z.]+)*)\s*\$?\s*=")
_UNIT = re.compile(
    r"""\s*(?:\\(?:mathrm|text)\s*\{[~\s]*(?:[kcm]?m|k?g|units?)\s*\}
      |[kcm]?m\b|(?:cubic\ |square\ )?units|[lL]itres|metres)
    (?:\s*\$?\s*\^\s*\{?\d\}?)?\s*\$?\s*$""",
    re.VERBOSE,
)


def bare(answer: str) -> str:
    r"""An answer of MathVerse without what it is of and its unit: `Area $=9 \pi \mathrm{cm}^{2}$` is 9 \pi. Its authors
    have a model compare answers; a rule needs the value alone."""
    value = _UNIT.sub("", _WHAT.sub("", answer))
    return value.strip().strip("$").strip() if value != answer else answer


# ---- where the rows come from ----


@dataclass(frozen=True)
class Part:
    hub: Mapping[str, Any]
    """Arguments of `datasets.load_dataset`."""
    question: Callable[[Row], Question | None]


# Of the branch that has the videos cut to what is asked about.
_MVBENCH = {
    "action_antonym": "ssv2_video_mp4",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video_segment",
    "action_prediction": "star/Charades_segment",
    "action_sequence": "star/Charades_segment",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd_convert",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_segment",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}

BENCHMARKS: Mapping[str, Sequence[Part]] = {
    "mmmu": [Part({"path": "lmms-lab/MMMU", "split": "validation"}, mmmu)],
    "mmmu-pro": [
        Part({"path": "MMMU/MMMU_Pro", "name": "standard (10 options)", "split": "test"}, mmmu_pro),
        Part({"path": "MMMU/MMMU_Pro", "name": "vision", "split": "test"}, mmmu_pro),
    ],
    "mathvista": [Part({"path": "AI4Math/MathVista", "split": "testmini"}, mathvista)],
    "mathvision": [Part({"path": "MathLLMs/MathVision", "split": "test"}, mathvision)],
    "wemath": [Part({"path": "We-Math/We-Math", "split": "testmini"}, wemath)],
    "mathverse": [Part({"path": "AI4Math/MathVerse", "name": "testmini", "split": "testmini"}, mathverse)],
    "video-holmes": [
        Part(
            {"path": "TencentARC/Video-Holmes", "data_files": {"test": "test_Video-Holmes.json"}, "split": "test"},
            video_holmes,
        )
    ],
    "mvbench": [
        Part(
            {"path": "OpenGVLab/MVBench", "name": task, "split": "train", "revision": "video"},
            partial(mvbench, folder=folder),
        )
        for task, folder in _MVBENCH.items()
    ],
    "mmvu": [
        Part({"path": "yale-nlp/MMVU", "data_files": {"validation": "validation.json"}, "split": "validation"}, mmvu)
    ],
    "videomathqa": [Part({"path": "MBZUAI/VideoMathQA", "name": "mcq", "split": "test"}, videomathqa)],
}


def questions(parts: Iterable[Part]) -> Iterator[Question]:
    """Streamed, so that no split is downloaded but the one that is asked for."""
    for part in parts:
        rows = cast(datasets.IterableDataset, datasets.load_dataset(**part.hub, streaming=True))
        yield from filter(None, map(part.question, rows.decode(False)))


# ---- into a file ----


def write(name: str, asked: Iterable[Question], out: Path) -> tuple[int, int]:
    """How many were written, and how many left out because a video is missing. The file is whole or not there."""
    (out / name).mkdir(parents=True, exist_ok=True)
    draft = out / f".{name}.jsonl"
    written = left_out = 0
    with draft.open("w", encoding="utf-8") as file:
        for question in asked:
            videos = [_found(out, video) for video in question.videos]
            if None in videos:
                left_out += 1
                continue
            images = [_saved(image, out, name) for image in question.images]
            media = {"images": images} if images else {"videos": videos}
            line = {"prompt": question.prompt, "answer": question.answer} | media
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            written += 1
    draft.replace(out / f"{name}.jsonl")
    return written, left_out


def _saved(image: Row, out: Path, name: str) -> str:
    """Under its hash, because many questions share a picture."""
    data: bytes = image["bytes"]
    path = f"{name}/{hashlib.sha256(data).hexdigest()[:24]}{Path(image.get('path') or '').suffix}"
    (out / path).write_bytes(data)
    return path


def _found(out: Path, video: str) -> str | None:
    """Some are no mp4, whatever their row says."""
    if (out / video).is_file():
        return video
    others = sorted((out / video).parent.glob(f"{glob.escape(Path(video).stem)}.*"))
    return others[0].relative_to(out).as_posix() if others else None


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--out", type=Path, default=Path("data/benchmarks"), metavar="DIR", help="[data/benchmarks]")
    arguments = parser.parse_args(words)
    for name in arguments.names:
        try:
            written, left_out = write(name, questions(BENCHMARKS[name]), arguments.out)
        except OSError as error:  # the hub is away, or has no such data set for this user
            raise SystemExit(f"{name}: {str(error).splitlines()[0]}") from None
        missing = f", {left_out} left out: no video of theirs in {arguments.out / name}" if left_out else ""
        print(f"{arguments.out / name}.jsonl: {written} questions{missing}")


if __name__ == "__main__":
    main()
