import contextlib
import re
from pathlib import Path

import pytest

from clients.cli import main
from trainer.commands.plan import cost, groups_of
from trainer.plan.cost import Cost
from trainer.plan.make import make_plan
from trainer.plan.steps import Step, Teacher
from trainer.recipe.file import load

RECIPES = sorted(Path("recipes").glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_a_plan_that_is_printed(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe)]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    plan = make_plan(load(recipe))
    assert [row[0] for row in rows[1:-3]] == [segment.id for segment in plan.segments]
    assert rows[-3][2] == f"{len(list(plan.steps))} steps"
    assert [row[0] for row in rows[-3:]] == ["all", "disk", "rollouts"]


def test_a_step_costs_its_own_prompts_and_its_teachers() -> None:
    recipe = load(Path("recipes/miniature.toml"), ["rollout.opd_prompts=2"])
    steps = {str(step.makes): step for step in make_plan(recipe).steps}
    assert cost(steps["text@1"], recipe) == Cost(1, 64, 64 * 48, 0)
    assert cost(steps["text@4"], recipe) == Cost(1, 64 + 2 * 8, (64 + 2 * 8) * 48, 2 * 2 * 8 * 48)


def test_a_fork_of_a_revision_of_an_earlier_run_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "recipes/miniature.toml", "--set", 'branches.text.init="expert@120"']
    for name in ("text", "image", "video"):
        words += ["--set", f'branches.{name}.capabilities=["{name}"]']
    assert main(words) == 0
    assert "text:0" in capsys.readouterr().out


def test_a_rate_that_cannot_finish_a_step_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "recipes/paper-copd2.toml", "--set", "budget.tokens_per_s=500"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in ("text@7 samples up to 67,108,864 tokens", "46.6 h at budget.tokens_per_s = 500", "needs 971 tokens"):
        assert part in error
    assert main([*words, "--set", "budget.step_hours=47"]) == 0


def test_limits_are_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipes/paper-copd2.toml", "--limits"]) == 0
    assert "| one call | 524,288 tokens |" in capsys.readouterr().out


def test_hours_and_money_are_told_of_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "recipes/gpu-1x80g-4b.toml", "--set", "method.cycles=1", "--card"]
    assert main([*words, "h100", "--price", "2.5"]) == 0
    lines = capsys.readouterr().out.splitlines()[-8:]
    hours, cost = re.findall(r"[\d,.]*\d", lines[0].replace("H100 SXM, 80 GB", ""))[:2]
    assert float(cost) == pytest.approx(2.5 * float(hours), abs=0.13)
    assert float(hours) == pytest.approx(sum(float(line.split()[0]) for line in lines[1:4]), abs=0.2)
    assert "25.2 % of 989 TFLOP/s: measured on an H100" in lines[1]
    assert lines[5:7] == [
        "service and worker on one card: 1 of 8 cards",
        "      65.2  GiB of 79 on each card: both together",
    ]
    assert "; bench/results/gpu_step.json; " in lines[7]
    assert main([*words, "rtx-4090"]) == 0
    printed = capsys.readouterr()
    assert "25.2 % of 165 TFLOP/s: scaled from an H100" in printed.out
    assert "warning: recipe fits: " in printed.err
    assert max(map(len, printed.out.splitlines()[-8:])) <= 80


def test_several_cards_divide_the_hours_and_each_has_its_price(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "recipes/gpu-1x80g-4b.toml", "--set", "method.cycles=1", "--card", "h100", "--price", "2.5"]
    assert main(words) == 0
    first = capsys.readouterr().out.splitlines()[-8:]
    assert main([*words, "--set", "engine.data_parallel=4", "--workers=3", "--processes=4"]) == 0
    lines = capsys.readouterr().out.splitlines()[-9:]
    hours, cost = re.findall(r"([\d.,]+) hours on 16 .* GB, ([\d.,]+) at 2.5 an hour each", lines[0])[0]
    assert float(cost) == pytest.approx(16 * 2.5 * float(hours), rel=0.02)
    assert float(lines[1].split()[0]) == pytest.approx(float(first[1].split()[0]) / 12, abs=0.06)
    assert float(lines[2].split()[0]) == pytest.approx(float(first[2].split()[0]) / 4, abs=0.06)
    assert lines[5] == "4 cores of 1, 3 workers of 4: 16 cards on 2 hosts of 8"
    assert lines[6].endswith(" GiB of 79 on each card: service")
    assert lines[7].endswith(" GiB of 79 on each card: worker")
    assert max(map(len, lines)) <= 90


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--card", "h10"], "--card h10: no such value; did you mean h100?"),
        (["--price", "2.5"], "--price 2.5: of an hour of which card? name it with --card"),
        (["--card", "h100", "--price", "0"], "--price 0: take what an hour costs, more than 0"),
        (["--card", "h100", "--workers", "4"], "--workers 4: there are 3 branches, and each has one at a time"),
        (["--card", "h100", "--processes", "9"], "--processes is 9, and a host has 8 cards: lower it, or --cards-per-"),
        (["--card", "h100", "--set", "base.dtype=float32"], "knows the rates of bfloat16; add --set base.dtype="),
    ],
)
def test_a_price_that_cannot_be_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2") if words[1] == "h10" else contextlib.nullcontext():
        assert main(["plan", "recipes/gpu-1x80g-4b.toml", *words]) == 2
    output = capsys.readouterr()
    assert (output.out, output.err.count("\n")) == ("", 1)
    assert said in output.err


def test_groups_are_those_of_rewards_teachers_and_controls() -> None:
    recipe = load(Path("recipes/miniature.toml"), ["rollout.opd_prompts=2", "rollout.opd_group_size=4"])
    plan = make_plan(recipe)
    groups = groups_of(plan, recipe)
    costs = [cost(step, recipe) for step in plan.steps]
    assert sum(group.size * count for group, count in groups.items()) == sum(step.rollouts for step in costs)
    scored = sum(2 * group.teachers * group.size * group.completion * count for group, count in groups.items())
    assert scored == sum(step.scored for step in costs)


def test_a_recipe_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipes/nothing.toml"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_teachers_term_is_named_by_its_branch_and_by_other_data() -> None:
    step = next(step for step in make_plan(load(Path("recipes/miniature.toml"))).steps if step.teachers)
    teacher = step.teachers[0]
    assert teacher.name == teacher.ref.branch
    assert Teacher(teacher.ref, "music", 1.0).name == f"{teacher.ref.branch}-music"
    assert Step("text", 3).parent.revision == 2
