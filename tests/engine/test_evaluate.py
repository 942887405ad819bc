"""Accuracy and overlap through the real service: against answers asked for by hand, and of twins."""

import asyncio
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from adapters.base import locate
from adapters.manifest import WEIGHTS
from clients.cli import main
from clients.client import AsyncClient
from service.concurrency import Stopped
from tests.engine.load import running
from tests.engine.service_process import ServiceProcess
from trainer.data.generated import prompts
from trainer.evaluation.exams import decoder, examine, exams, pinned
from trainer.evaluation.overlap import ALARM, Overlaps, alarms, measure_overlap
from trainer.local.examiner import Examiner
from trainer.local.processes import ProcessGroup
from trainer.recipe.file import load
from trainer.reporting.progress import Progress
from trainer.rewards import exact_reward
from trainer.rewards.pool import RewardPool

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

RECIPE = Path(__file__).parents[2] / "recipes" / "miniature.toml"
BASE = locate("miniature")
DECODE = partial(AutoTokenizer.from_pretrained(BASE).decode, skip_special_tokens=True)


@pytest.fixture(scope="module")
def far(tmp_path_factory, adapter_folders) -> Path:
    """An adapter that is far from the base."""
    folder = shutil.copytree(adapter_folders["strong"], tmp_path_factory.mktemp("far") / "far")
    weights = load_file(folder / WEIGHTS)
    save_file({name: value * 6 if "lora_B" in name else value for name, value in weights.items()}, folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def service(service: ServiceProcess, far: Path) -> ServiceProcess:
    """With branches `far@1` and `twin@1` of the same weights, and `zero@0`, which is the base."""

    async def publish() -> None:
        async with AsyncClient(service.url) as client:
            for branch in ("far", "twin"):
                await client.fork(branch, "base")
                await client.publish(branch, 1, far, parent=0)
            await client.fork("zero", "base")

    asyncio.run(publish())
    return service


@pytest.fixture
def command(service, monkeypatch):
    def call(*words: str) -> int:
        monkeypatch.setenv("COEVO_SERVICE_URL", service.url)
        return main(["eval", str(RECIPE), *words])

    return call


def overlaps(url: str, branches: list[str]) -> Overlaps:
    async def measure() -> Overlaps:
        questions = {
            name: list(prompts(name, label=name, split="validation", size=6, seed=1).prompts)
            for name in ("text", "image", "video")
        }
        async with AsyncClient(url) as client:
            return await measure_overlap(client, branches, questions, top_k=10, seed=4, max_tokens=40, decode=DECODE)

    return asyncio.run(measure())


def test_overlap_is_1_and_kl_0_where_two_branches_are_one_model(service) -> None:
    measured = overlaps(service.url, ["base", "zero@0", "far@1", "twin@1"])
    for capability in measured.capabilities:
        for a, b in (("base", "zero@0"), ("far@1", "twin@1"), ("far@1", "far@1")):
            value, kl, common = measured.at(a, b, capability)
            assert value > 0.99, (a, b, capability)
            assert abs(kl) < 0.01, (a, b, capability)
            assert common == pytest.approx(1, abs=0.001), (a, b, capability)
        value, kl, common = measured.at("zero@0", "far@1", capability)
        assert value < 0.95
        assert kl > 0.05
        assert common is not None
        # Below: of the KL, which is sampled from few tokens. Above: such a pair is out of reach, and told.
        assert 1 - (kl / 2) ** 0.5 - 0.05 < common < ALARM
    assert {line.split()[0] for line in alarms(measured)} >= {"zero@0"}


def test_overlap_measured_twice_is_equal(service) -> None:
    assert overlaps(service.url, ["base", "far@1"]) == overlaps(service.url, ["base", "far@1"])


def test_accuracy_of_the_base_is_what_asking_by_hand_counts(service, command, tmp_path, capsys) -> None:
    assert command("--adapter=base", "--adapter=zero", "--questions=12", f"--items={tmp_path / 'items.jsonl'}") == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()[1:]]
    table = {(exam, way, model): float(accuracy) for exam, way, model, accuracy, *_ in rows}
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    with service.client() as http:
        for name in ("text", "image", "video"):
            right = []
            for prompt in prompts(name, label=name, split="validation", size=12, seed=1000):
                media = {
                    kind: [http.put("/media", content=data).json()["id"] for data in getattr(prompt, kind)]
                    for kind in ("images", "videos")
                }
                request = {"prompts": [{"prompt": {"messages": prompt.messages}, **media}], "max_tokens": 48,
                         "temperature": 0.0}  # fmt: skip
                answer = http.post("/generate", params={"adapter": "base"}, json=request).json()
                text = DECODE(answer["prompts"][0]["completions"][0]["token_ids"])
                right.append(exact_reward(text, prompt.answer))
            greedy = (name, "greedy", "base")
            rewards = [item["reward"] for item in items if (item["exam"], item["way"], item["model"]) == greedy]
            assert rewards == right
            assert table[name, "greedy", "base"] == pytest.approx(sum(right) / 12, abs=1e-4)
            assert table[name, "greedy", "zero@0"] == pytest.approx(sum(right) / 12, abs=1e-4)
    assert len(items) == 2 * 3 * 12 * (1 + load(RECIPE).evaluation.answers.samples)


def test_answers_asked_for_twice_are_equal(service) -> None:
    async def measure(pool: RewardPool):
        recipe = load(RECIPE, ["evaluation.answers.samples=2"])
        async with AsyncClient(service.url) as client:
            return await examine(
                client, pool, ["base", "far@1"], exams(recipe, 6), seed=3, max_tokens=48, decode=DECODE
            )  # fmt: skip

    with RewardPool(num_children=1) as pool:
        first, second = (asyncio.run(measure(pool)) for _ in range(2))
    assert first == second
    assert len({item.text for item in first}) > 10


def test_an_exam_that_is_told_to_stop_leaves_no_question_behind(service, tmp_path) -> None:
    looks = iter([False, False])
    recipe = load(RECIPE)
    with RewardPool(num_children=1) as pool:
        processes = ProcessGroup(tmp_path, {}, is_stopped=lambda: next(looks, True))
        examiner = Examiner(recipe, tmp_path, processes, exams(recipe), decoder(recipe))
        with Progress("examining", "questions") as progress, pytest.raises(Stopped):
            asyncio.run(examiner.ask(service.url, ["base", "far@1"], pool, progress))
    with service.client() as http:
        service.wait_until(lambda: not any(running(http).values()))


def test_a_branch_is_measured_as_it_is_at_that_moment(service) -> None:
    async def names() -> list[str]:
        async with AsyncClient(service.url) as client:
            return await pinned(client, ["base", "far", "far@1", "far@0"])

    assert asyncio.run(names()) == ["base", "far@1", "far@0"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("txt", "--adapter txt: the service has no such branch; it has base, {branches}"),
        ("far@7", "--adapter far@7: the service has no such revision of far; it has 0, 1"),
        ("Far", "'Far' names no adapter; take BRANCH or BRANCH@REVISION, such as image@17"),
    ],
)
def test_a_wrong_adapter_is_one_line(service, command, capsys, name: str, message: str) -> None:
    with service.client() as http:
        branches = http.get("/adapters").json()["branches"]
    assert command(f"--adapter={name}", "--questions=1") == 2
    assert capsys.readouterr().err == f"coevo eval: {message.format(branches=', '.join(branches))}\n"
