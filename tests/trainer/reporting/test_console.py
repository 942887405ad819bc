"""What a person reads while a run goes on."""

from pathlib import Path

import pytest
from rich.console import Console as Terminal

from tests.faults.recipes import small
from tests.trainer.orchestration import run_events
from trainer.reporting.console import Console

RECIPE = small("method.cycles=1", "rollout.prompts=2", "rollout.group_size=4")


def test_without_a_terminal_each_event_is_a_line_once(tmp_path: Path, capsys) -> None:
    path = tmp_path / "events.jsonl"
    with Console(RECIPE, path, "http://here") as console:
        console.look()
        run_events.write(path, run_events.EVENTS[:3])
        console.look()
        console.look()
        assert capsys.readouterr().out.splitlines() == [
            "text@1 of 3: reward 0.5, length 20, 1.8 s",
            "image@1 of 3: reward 0.25, length 20, 1.8 s",
        ]
        run_events.write(path)
        console.look()
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "image@3 of 3: reward 0.5, length 20 taught by text@2, 1.8 s"
    assert lines[-3:] == [
        "opd 3: shared probability / overlap of the top 10, lowest over the capabilities: text-image 0.980 / 0.940",
        "accuracy: text@3 greedy 62.5 %",
        "cycle 2: 1 RLVR steps, 2 of OPD",
    ]


def test_a_resumed_run_prints_what_is_new_and_knows_the_rest(tmp_path: Path, capsys) -> None:
    path = run_events.write(tmp_path / "events.jsonl", run_events.EVENTS[:3])
    with Console(RECIPE, path, "http://here") as console:
        console.look()
        assert capsys.readouterr().out == ""
        assert (console.heads()["text"], console.heads()["image"]) == (1, 1)
        run_events.write(path)
        console.look()
    assert "image@1 " not in (out := capsys.readouterr().out)
    assert "image@3 of 3" in out


def test_rollouts_that_were_not_kept_are_a_line(tmp_path: Path, capsys) -> None:
    event = {"kind": "rollouts", "branch": "text", "step": 2, "error": "not kept: the disk of the runs is full"}
    path = tmp_path / "events.jsonl"
    with Console(RECIPE, path, "http://here") as console:
        run_events.write(path, [event])
        console.look()
    assert capsys.readouterr().out == "rollouts of text@2: not kept: the disk of the runs is full\n"


def test_a_tracker_that_takes_no_more_is_a_line(tmp_path: Path, capsys) -> None:
    text = "tracking.to: wandb takes no more: CommError: no network"
    path = tmp_path / "events.jsonl"
    with Console(RECIPE, path, "http://here") as console:
        run_events.write(path, [{"kind": "tracker", "text": text}])
        console.look()
    assert capsys.readouterr().out == f"{text}\n"


def test_on_a_terminal_a_table_says_who_waits_for_whom(tmp_path: Path) -> None:
    path = run_events.write(
        tmp_path / "events.jsonl", [*run_events.EVENTS[:4], run_events.overlap(2, "text@2", "image@2")]
    )
    console = Console(RECIPE, path, "http://here")
    console.look()
    terminal = Terminal(width=160, record=True)
    terminal.print(console.table())
    text = terminal.export_text()
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") > 3}
    assert "2 / 3" in rows["text"]
    assert "image@2, video@2" in rows["text"]
    assert "text-image 0.980 / 0.940" in text
    assert "cycle 1 of 1" in text
    assert f"{'━' * 10}{'╌' * 20} 3 of 9 steps" in text


def test_without_a_terminal_a_line_now_and_then_says_what_is_left(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.reporting.console.EVERY_S", 0.0)
    path = tmp_path / "events.jsonl"
    with Console(RECIPE, path, "http://here") as console:
        for count in (2, 3):
            run_events.write(path, run_events.EVENTS[:count])
            console.look()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if " steps" in line] == ["1 of 9 steps", "2 of 9 steps, 0 s left"]


def test_what_a_model_wrote_is_no_markup_of_the_table(tmp_path: Path) -> None:
    event = {"kind": "unrewarded", "branch": "text", "step": 1, "text": "One is '[/b] [red]'"}
    console = Console(RECIPE, run_events.write(tmp_path / "events.jsonl", [event]), "http://here")
    console.look()
    terminal = Terminal(width=80, record=True)
    terminal.print(console.table())
    assert "One is '[/b] [red]'" in terminal.export_text()


def test_a_branch_without_rewards_is_a_line(tmp_path: Path, capsys) -> None:
    path = tmp_path / "events.jsonl"
    with Console(RECIPE, path, "http://here") as console:
        event = {"kind": "unrewarded", "branch": "text", "step": 1, "text": "text cannot learn yet"}
        run_events.write(path, [event])
        console.look()
        assert capsys.readouterr().out == "text cannot learn yet\n"
        for reward, is_shown in ((0.0, True), (0.25, False)):
            run_events.write(path, [event, run_events.step("text", 1, 0.0), run_events.step("text", 2, reward)])
            terminal = Terminal(width=80, record=True)
            later = Console(RECIPE, path, "http://here")
            later.look()
            terminal.print(later.table())
            assert ("cannot learn yet" in terminal.export_text()) == is_shown
