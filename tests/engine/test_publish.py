"""Adapters that were trained elsewhere, published by the command a person types: they score as PEFT does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from adapters.base import locate
from clients.cli import main
from service.engine.vllm import EngineMedia
from tests.adapters.peft_files import PARTIAL, WITHOUT_VISION, save_by_peft
from tests.adapters.trl_files import save_by_trl
from tests.engine.reference import Reference
from tests.engine.service_process import ServiceProcess
from tests.engine.test_scores import random_ids

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore:TRL currently supports vLLM versions:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]
TRL = {"trl-all-linear": WITHOUT_VISION, "trl-query-value": {"target_modules": ["q_proj", "v_proj"]}}
"""A step of TRL's trainer each, with the settings that its guides name."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """As PEFT and TRL save them, of different strength and rank, so that none passes for another."""
    root = tmp_path_factory.mktemp("partial")
    by_peft = {
        name: save_by_peft(root / name, seed=seed, strength=0.1, r=4 + seed, **PARTIAL[name])
        for seed, name in enumerate(PARTIAL)
    }
    return by_peft | {name: save_by_trl(root / name, **settings) for name, settings in TRL.items()}


@pytest.fixture
def address(service: ServiceProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COEVO_SERVICE_URL", service.url)


@pytest.mark.usefixtures("address")
def test_adapters_with_fewer_modules_score_as_peft_does(
    service: ServiceProcess, folders: dict[str, Path], adapter_folders: dict[str, Path], capsys
) -> None:
    # One with all seven modules beside them: what it left in a slot of the engine must not be computed for them.
    everything = folders | {"seven": adapter_folders["strong"]}
    for name, folder in everything.items():
        assert main(["publish", str(folder), f"own-{name}"]) == 0
        reference, _, digest = capsys.readouterr().out.partition(" ")
        assert reference == f"own-{name}@1"
        with service.client() as http:
            assert digest == http.get(f"/adapters/own-{name}/1").json()["digest"] + "\n"
    # A model of its own: PEFT writes into it, and the one that other tests share has their adapters.
    model = Qwen3VLForConditionalGeneration.from_pretrained(locate("miniature"), dtype=torch.float32).eval()
    expected = Reference(model, Qwen3VLProcessor.from_pretrained(locate("miniature")), everything)
    names = ["seven", *folders, "base", "seven", *reversed(folders)]
    params = {"adapter": ["base" if name == "base" else f"own-{name}" for name in names]}
    prompt = random_ids(33, 1)
    completions = [random_ids(length, length) for length in (3, 17, 40)]
    body = {"sequences": [{"prompt": prompt, "completion": completion} for completion in completions]}
    with service.client() as http:
        rows = http.post("/logprobs", params=params, json=body).json()["adapters"]
    by_name: dict[str, np.ndarray] = {}
    for name, row in zip(names, rows, strict=True):
        for completion, scored in zip(completions, row["sequences"], strict=True):
            logprobs_CV = expected.logprobs(name, [*prompt, *completion], len(completion), EngineMedia())
            wanted_C = logprobs_CV[torch.arange(len(completion)), torch.tensor(completion)]
            np.testing.assert_allclose(scored["logprobs"], wanted_C.numpy(), rtol=0, atol=1e-5, err_msg=name)
        by_name[name] = np.array(row["sequences"][2]["logprobs"])
    for name in folders:
        assert np.abs(by_name[name] - by_name["base"]).max() > 0.01


@pytest.mark.usefixtures("address")
def test_the_next_revision_and_a_repeated_one(folders: dict[str, Path], capsys) -> None:
    def publish(*words: str) -> str:
        assert main(["publish", *words]) == 0
        return capsys.readouterr().out.split()[0]

    first, second = str(folders["query-value"]), str(folders["pattern"])
    assert publish(first, "next") == "next@1"
    assert publish(first, "next") == "next@1"
    assert publish(second, "next", "--parent=1") == "next@2"
    assert publish(first, "next", "--revision=3") == "next@3"


@pytest.mark.usefixtures("address")
def test_a_mistaken_head_goes_back_by_a_new_revision(
    service: ServiceProcess, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def retire(*words: str) -> tuple[int, str, str]:
        code = main(["retire", *words])
        output = capsys.readouterr()
        return code, output.out, output.err

    for name in ("query-value", "pattern"):
        assert main(["publish", str(folders[name]), "mistaken"]) == 0
    capsys.readouterr()
    prompt, completion = random_ids(20, 1), random_ids(9, 2)

    def scores(adapter: str) -> np.ndarray:
        body = {"sequences": [{"prompt": prompt, "completion": completion}]}
        with service.client() as http:
            answer = http.post("/logprobs", params={"adapter": adapter}, json=body).json()
        return np.array(answer["adapters"][0]["sequences"][0]["logprobs"])

    def is_scored_as(adapter: str, expected: np.ndarray) -> bool:
        return float(np.abs(scores(adapter) - expected).max()) < 1e-5

    before = {name: scores(name) for name in ("mistaken", "mistaken@1", "base")}
    line = "mistaken@3 has the files of mistaken@1; mistaken@2 is no longer the head\n"
    assert retire("mistaken") == (0, line, "")
    assert is_scored_as("mistaken", before["mistaken@1"])
    assert is_scored_as("mistaken@2", before["mistaken"])  # it is still there for who names it
    assert not is_scored_as("mistaken", before["mistaken"])
    assert retire("mistaken", "--to", "0")[0] == 0
    assert is_scored_as("mistaken", before["base"])
    refusal = retire("mistaken", "--to=9")
    assert refusal == (2, "", "coevo retire: --to 9: no revision before the head 4; there are 0, 1, 2, 3\n")
    code, _, error = retire("mistakn")
    assert (code, error.startswith("coevo retire: mistakn: no such branch; there are ")) == (2, True)
    with service.client() as http:
        assert http.post("/adapters/begun", json={"from": "base"}).status_code == 201
        stale = http.post("/adapters/mistaken/head", json={"to": 0, "head": 2}).json()
        again = http.post("/adapters/mistaken/head", json={"to": 1, "head": 2})
    assert (stale["type"], stale["head"]) == ("stale-parent", 4)
    assert (again.status_code, again.json()["revision"]) == (200, 3)  # the first try's answer
    refusal = "coevo retire: begun@0: no revision lies before it; publish another one instead\n"
    assert retire("begun") == (2, "", refusal)


@pytest.mark.usefixtures("address")
def test_what_the_service_refuses_is_one_line_with_its_remedy(folders: dict[str, Path], tmp_path, capsys) -> None:
    def refused(folder: Path, *words: str) -> str:
        assert main(["publish", str(folder), "refused", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"coevo publish: {folder}: ")
        assert error.count("\n") == 1
        return error

    tower = save_by_peft(tmp_path / "tower", target_modules="all-linear")
    assert "vision tower, which is frozen; train with exclude_modules='.*visual.*'" in refused(tower)
    large = save_by_peft(tmp_path / "large", r=32, target_modules=["q_proj"])
    assert "r is 32, the engine's limit is 16; serve with a larger --max-lora-rank" in refused(large)
    stale = refused(folders["pattern"], "--revision=7", "--parent=6")
    assert "revision 7 on 6 does not continue the head, which is 0; publish 1 on 0" in stale
