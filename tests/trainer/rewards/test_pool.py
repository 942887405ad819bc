import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from adapters.errors import UserError
from trainer.rewards import RewardItem, Rule, Scored
from trainer.rewards.pool import RewardPool

PAIRS = Path(__file__).parents[3] / "bench" / "latex_pairs.jsonl"

# What people's own rewards do. The completion says which; any other one is a number, and its own score.
FAULTY_REWARDS = r"""
import ctypes, math, os, signal, subprocess, sys, threading, time

def memory():
    blocks = []
    while True:
        blocks.append(bytes(200_000_000))

def deep():
    return deep()

def storm():
    for _ in range(2000):
        print("x" * 1000)
        print("x" * 1000, file=sys.stderr)
        os.write(1, b"y" * 1000)
    return 7

def threads():
    for _ in range(5):
        threading.Thread(target=time.sleep, args=(1000,)).start()
    return 7

def grandchild():
    subprocess.Popen(["sleep", "1000"])
    return 7

def deaf():
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    time.sleep(1000)

def raising():
    raise ValueError("no verdict")

def import_torch():
    import torch
    return float(torch.ones(7).sum())

FAULTS = {
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "wild pointer": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "_exit": lambda: os._exit(0),
    "exit": lambda: sys.exit(0),
    "none": lambda: None,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "string": lambda: "1",
    "hang": lambda: time.sleep(1000),
    "spin": lambda: exec("while True: pass"),
    "blind": lambda: os.closerange(0, 3) or 7,
    "memory": memory, "deep": deep, "storm": storm, "threads": threads, "grandchild": grandchild, "deaf": deaf,
    "raising": raising, "torch": import_torch,
}

def reward(completion, answer):
    return FAULTS[completion]() if completion in FAULTS else float(completion)

def slow(completion, answer):
    time.sleep(0.05)
    return float(completion)
"""
FAULTY = Rule("faulty_rewards:reward")
DEADLINE_S = 60.0  # for what is not about deadlines


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "faulty_rewards.py").write_text(FAULTY_REWARDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture(scope="module")
def pool(modules: Path) -> Iterator[RewardPool]:
    with RewardPool(num_children=2, memory_mb=2048) as pool:
        yield pool


def items(*completions: object) -> list[RewardItem]:
    return [RewardItem(str(completion), "") for completion in completions]


def scores(*values: float) -> list[Scored]:
    return [Scored(float(value)) for value in values]


def wait_until(holds: Callable[[], bool], patience_s: float = 30.0) -> None:
    ends = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < ends, "it has not come true"
        time.sleep(0.01)


def fork_server(but: psutil.Process | None = None) -> psutil.Process:
    (server,) = [
        child for child in psutil.Process().children() if "trainer.rewards.children" in child.cmdline() and child != but
    ]
    return server


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("segfault", "died"),
        ("wild pointer", "died"),
        ("kill", "died"),
        ("_exit", "died"),
        ("exit", "raised SystemExit: 0"),
        ("none", "returned NoneType"),
        ("nan", "returned nan"),
        ("inf", "returned inf"),
        ("string", "returned str"),
        ("raising", "raised ValueError: no verdict"),
        ("deep", "raised RecursionError"),
        ("memory", "ran out of memory"),
    ],
)
def test_a_fault_costs_its_own_completion_and_no_other(pool: RewardPool, fault: str, why: str) -> None:
    before, fallen, after = range(5), fault, range(5, 10)
    scored = pool.score(items(*before, fallen, *after), FAULTY, DEADLINE_S)
    assert scored[:5] + scored[6:] == scores(*range(10))
    assert scored[5].value is None
    assert why in str(scored[5].why)
    assert pool.score(items(3), FAULTY, DEADLINE_S) == scores(3)


@pytest.mark.parametrize("antic", ["storm", "threads", "grandchild", "blind", "torch"])
def test_antics_do_not_disturb_the_scores(pool: RewardPool, antic: str) -> None:
    assert pool.score(items(1, antic, 2, antic, 3), FAULTY, DEADLINE_S) == scores(1, 7, 2, 7, 3)


def test_the_fork_server_stays_without_torch_whatever_its_parent_and_children_have(pool: RewardPool) -> None:
    import torch  # noqa: F401

    assert pool.score(items("torch"), FAULTY, DEADLINE_S) == scores(7)
    assert "libtorch" not in Path(f"/proc/{fork_server().pid}/maps").read_text()  # a parent may preload torch's libgomp


def test_hanging_completions_are_stopped_at_the_deadline_and_the_others_are_scored(pool: RewardPool) -> None:
    scored = pool.score(items(*range(20), "hang", *range(20, 40), "spin", "deaf"), FAULTY, deadline_s=3)
    assert scored[:20] + scored[21:41] == scores(*range(40))
    assert [scored[index].value for index in (20, 41, 42)] == [None] * 3


def test_many_hanging_completions_cost_the_others_nothing(pool: RewardPool) -> None:
    scored = pool.score(items(*(number if number % 3 else "hang" for number in range(30))), FAULTY, deadline_s=3)
    assert [result.value for result in scored] == [number if number % 3 else None for number in range(30)]
    assert pool.score(items(1, 2), FAULTY, DEADLINE_S) == scores(1, 2)


def test_what_does_not_fit_into_the_deadline_is_unscorable_and_says_so(pool: RewardPool) -> None:
    scored = pool.score(items(*range(200)), Rule("faulty_rewards:slow"), deadline_s=1)
    done = [result for result in scored if result.value is not None]
    assert 0 < len(done) < 200
    assert {result.why for result in scored if result.value is None} == {"no result within the deadline of 1 s"}


def test_results_come_in_the_order_of_the_items(pool: RewardPool) -> None:
    assert pool.score(items(*range(2000)), FAULTY, DEADLINE_S) == scores(*range(2000))


def test_an_empty_batch_has_no_results(pool: RewardPool) -> None:
    assert pool.score([], FAULTY, DEADLINE_S) == []


def test_an_empty_completion_is_a_zero_and_an_empty_answer_unscorable(pool: RewardPool) -> None:
    scored = pool.score(
        [RewardItem("", "3"), RewardItem(r"\boxed{3}", ""), RewardItem(r"\boxed{3}", "3")], Rule("math"), DEADLINE_S
    )
    assert [result.value for result in scored] == [0, None, 1]
    assert "it is empty" in str(scored[1].why)


def test_long_completions_and_any_characters_pass(pool: RewardPool) -> None:
    text = "\n\x00\ud800\u2028\U0001f600" * 50_000
    assert pool.score(
        [RewardItem(rf"{text}\boxed{{{{{text}}}}}", f"{{{text}}}")] * 3, Rule("exact"), DEADLINE_S
    ) == scores(1, 1, 1)


def test_the_shipped_latex_pairs_get_the_verdicts_of_a_mathematician(pool: RewardPool) -> None:
    pairs = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    assert len(pairs) == 200
    assert sum(pair["right"] for pair in pairs) == 100
    scored = pool.score([RewardItem(pair["completion"], pair["answer"]) for pair in pairs], Rule("math"), DEADLINE_S)
    assert [pair for pair, result in zip(pairs, scored, strict=True) if result.value != pair["right"]] == []


def test_several_rules_and_threads_share_one_pool(pool: RewardPool) -> None:
    completion = r"The answer is \boxed{B}"
    rules = [Rule("choice"), Rule("exact"), Rule("math", format_share=0.25), Rule("numeric"), FAULTY]
    answers = ["B", "A", "7", "7", ""]
    results: dict[int, list[Scored]] = {}

    def work(number: int) -> None:
        for _ in range(5):
            results[number] = pool.score([RewardItem(completion, answers[number])] * 20, rules[number], DEADLINE_S)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(rules))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[number][0].value for number in range(5)] == [1, 0, 0.25, 0, None]
    assert all(len(set(results[number])) == 1 for number in range(5))


def test_an_interrupted_batch_leaves_nothing_to_the_next_one(pool: RewardPool) -> None:
    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.score(items(*range(200)), Rule("faulty_rewards:slow"), DEADLINE_S)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert pool.score(items(*range(1000, 1010)), FAULTY, DEADLINE_S) == scores(*range(1000, 1010))


def test_a_batch_with_many_unscorable_completions_is_one_warning(
    pool: RewardPool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pool.score(items("nan", *range(99)), FAULTY, DEADLINE_S)
        assert caplog.messages == []
        pool.score(items("nan", "nan", "none", *range(97)), FAULTY, DEADLINE_S)
    assert caplog.messages == [
        "reward faulty_rewards:reward: 3 of 100 completions unscorable: "
        "2 x it returned nan; 1 x it returned NoneType, not a number"
    ]


def test_a_child_killed_or_stopped_from_outside_costs_no_score(pool: RewardPool) -> None:
    for sign in (signal.SIGKILL, signal.SIGSTOP):
        pool.check(FAULTY)
        fork_server().children()[0].send_signal(sign)
        assert pool.score(items(*range(30)), FAULTY, deadline_s=4) == scores(*range(30))


def test_a_killed_fork_server_is_replaced_and_its_children_die_with_it(pool: RewardPool) -> None:
    pool.check(FAULTY)
    server = fork_server()
    children = server.children()
    server.kill()
    wait_until(lambda: not any(child.is_running() for child in children))
    assert pool.score(items(*range(30)), FAULTY, DEADLINE_S) == scores(*range(30))
    assert fork_server().pid != server.pid


def test_a_fork_server_that_loads_slowly_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine whose processors others use: no server loads in the time that a fork may take."""
    monkeypatch.setattr("trainer.rewards.pool._FORK_S", 0.2)
    with RewardPool() as pool:
        assert pool.score(items(1), FAULTY, DEADLINE_S) == scores(1)


@pytest.mark.parametrize(
    ("source", "kind", "remedy"),
    [
        ("", "absent_module:reward", "put the module beside the recipe"),
        ("", "wrong0:absent", "name a function"),
        ("def reward(completion): ...", "wrong1:reward", "it is called as reward"),
        ("1 / 0", "wrong2:reward", "its import raised ZeroDivisionError"),
        ("raise SystemExit(1)", "wrong3:reward", "its import raised SystemExit: 1"),
        ("import os; os._exit(1)", "wrong4:reward", "its import ended the process"),
        ("while True: pass", "wrong5:reward", "its import took longer than 1 s"),
    ],
)
def test_a_wrong_function_is_one_line_and_is_never_imported_here(
    pool: RewardPool, modules: Path, source: str, kind: str, remedy: str
) -> None:
    module = kind.partition(":")[0]
    if module != "absent_module":
        (modules / f"{module}.py").write_text(source)
    with pytest.raises(UserError, match=remedy) as caught:
        pool.check(Rule(kind), deadline_s=1)
    assert "\n" not in str(caught.value)
    assert module not in sys.modules


def test_a_reward_that_dies_when_it_is_loaded_makes_the_batch_unscorable(pool: RewardPool, modules: Path) -> None:
    (modules / "deadly_rewards.py").write_text("import os; os._exit(1)")
    scored = pool.score(items(*range(50)), Rule("deadly_rewards:reward"), DEADLINE_S)
    assert set(scored) == {Scored(None, "loading the reward: its process died (crash, kill or exit)")}
    assert pool.score(items(1), FAULTY, DEADLINE_S) == scores(1)


def test_closing_leaves_no_process_behind(pool: RewardPool) -> None:
    pool.check(FAULTY)
    server_of_module = fork_server()
    with RewardPool(num_children=3) as pool:
        pool.score(items("grandchild", "threads", "grandchild", 1), FAULTY, DEADLINE_S)
        server = fork_server(but=server_of_module)
        family = [server, *server.children(recursive=True)]
        assert sum(process.name() == "sleep" for process in family) == 2
    assert [process for process in family if process.is_running()] == []


def test_a_pool_that_never_started_closes() -> None:
    RewardPool().close()


def test_when_the_trainer_is_killed_its_children_die_even_while_they_hang(modules: Path) -> None:
    program = """if True:
        from trainer.rewards.pool import RewardPool
        from trainer.rewards import RewardItem, Rule
        items = [RewardItem(name, "") for name in ("grandchild", "spin", "deaf")] * 4
        RewardPool(num_children=2).score(items, Rule("faulty_rewards:reward"), 1000)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(modules), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as trainer:
        parent = psutil.Process(trainer.pid)
        try:
            wait_until(lambda: [process.name() for process in parent.children(recursive=True)].count("sleep") == 2)
            family = parent.children(recursive=True)
        finally:
            trainer.kill()
    # Nobody may wait for what has died by then: a zombie counts as dead.
    wait_until(lambda: not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family))


def test_a_reward_is_imported_from_its_folder_with_what_lies_beside_it(tmp_path):
    (tmp_path / "beside_the_recipe.py").write_text(
        "from helper_beside import WORD\n\ndef score(text, answer): return WORD in text\n"
    )
    (tmp_path / "helper_beside.py").write_text("WORD = 'yes'\n")
    rule = Rule("beside_the_recipe:score")
    with RewardPool(num_children=1) as pool:
        with pytest.raises(UserError, match="put the module beside the recipe, or its folder on PYTHONPATH"):
            pool.check(rule)
        placed = Rule("beside_the_recipe:score", folder=str(tmp_path))
        pool.check(placed)
        assert pool.score([RewardItem("yes", ""), RewardItem("no", "")], placed, 30.0) == [Scored(1.0), Scored(0.0)]
