"""Limits that follow from a recipe: enough for its longest calls, and those of a plain service for small ones."""

from pathlib import Path

import pytest

from clients.calls import prompts_together
from service.http.admission import tokens_of_generation, tokens_of_scoring
from service.schemas import GenerateRequest, LogprobsRequest, Prompt, Sequence
from service.settings import Settings
from trainer.recipe.file import load
from trainer.recipe.limits import MAX_IN_FLIGHT, limit_lines, limits

RECIPES = sorted(path for path in Path("recipes").rglob("*.toml") if path.parent.name != "parts")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipes_longest_calls_are_admitted_as_counted(path: Path) -> None:
    recipe = load(path)
    rollout, derived = recipe.rollout, limits(recipe)
    count = prompts_together(rollout.group_size, rollout.max_completion_tokens)
    prompt, completion = [1] * rollout.max_prompt_tokens, [1] * rollout.max_completion_tokens
    sampling = GenerateRequest(
        prompts=[Prompt(prompt=prompt)] * count, n=rollout.group_size, max_tokens=rollout.max_completion_tokens
    )
    scoring = LogprobsRequest(sequences=[Sequence(prompt=prompt, completion=completion)] * rollout.opd_batch[1])
    model_len = rollout.max_model_len
    sampled = tokens_of_generation(sampling, media_tokens=0, max_model_len=model_len)
    scored = tokens_of_scoring(scoring, 2, media_tokens=0, max_model_len=model_len)
    assert max(sampled, scored) <= derived.call_tokens
    # Full twice: while some sequences end, the next are there.
    assert derived.admitted_tokens // sampled * count * rollout.group_size >= 2 * recipe.engine.max_num_seqs
    assert derived.admitted_tokens >= 2 * scored
    assert len(scoring.model_dump_json()) < derived.body_bytes / 2


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_call_is_given_up_while_an_engine_works_at_the_rate(path: Path) -> None:
    """First come, first served: a call waits for all others, and then decodes in a full engine."""
    recipe = load(path)
    derived, rate = limits(recipe), recipe.budget.tokens_per_s
    calls = len(recipe.branches) * MAX_IN_FLIGHT
    assert derived.wait_s >= (calls - 1) * derived.call_s
    # In the engine at one token of each sequence a turn.
    alone_s = (
        recipe.rollout.max_completion_tokens * min(recipe.engine.max_num_seqs, calls * recipe.rollout.group_size) / rate
    )
    assert derived.request_s >= alone_s
    assert derived.patience_s > derived.wait_s + derived.request_s
    assert derived.waiting >= calls


def test_a_small_recipe_has_the_limits_of_a_plain_service() -> None:
    derived, plain = limits(load(Path("recipes/miniature.toml"))), Settings()
    assert (derived.request_s, derived.admitted_tokens, derived.body_bytes, derived.record_bytes) == (
        plain.request_timeout_s, plain.max_tokens, plain.body_bytes, plain.record_bytes,
    )  # fmt: skip


def test_longer_completions_and_slower_engines_take_longer() -> None:
    paper = Path("recipes/paper-copd3.toml")
    usual = limits(load(paper))
    slower = limits(load(paper, ["budget.tokens_per_s=1000"]))
    assert slower.request_s > 1.9 * usual.request_s
    shorter = limits(load(paper, ["rollout.max_completion_tokens=4096"]))
    assert shorter.patience_s < usual.patience_s / 2
    ahead = limits(load(paper, ["budget.prefetch=3"]))
    assert ahead.batch_bytes == 2 * usual.batch_bytes


def test_an_engine_of_four_cores_is_kept_as_full_as_one() -> None:
    paper = Path("recipes/paper-copd3.toml")
    single, spread = limits(load(paper)), limits(load(paper, ["engine.data_parallel=4"]))
    assert (spread.in_flight, spread.calls) == (4 * single.in_flight, 4 * single.calls)
    assert spread.admitted_tokens > 3 * single.admitted_tokens


@pytest.mark.parametrize("name", ["paper-copd3", "gpu-1x24g-2b"])
def test_the_page_of_operations_has_the_current_limits(name: str) -> None:
    table = "\n".join(limit_lines(load(Path(f"recipes/{name}.toml"))))
    assert table in Path("docs/operations.md").read_text(), f"paste: coevo plan recipes/{name}.toml --limits"
