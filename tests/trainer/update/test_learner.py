"""The weights of a worker: what it learnt counts when it is published, and other processes do the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from adapters.manifest import OPTIMISER, WEIGHTS
from service.schemas import CANARY_COMPLETION, CANARY_PROMPT
from tests.trainer.update.packs import prompt, random_rollout
from trainer.parts import Completion, LossTerm, Rollout
from trainer.recipe import LoraConfig, LossConfig, OptimiserConfig
from trainer.update.learner import Learner
from trainer.update.packing import lay_out
from trainer.update.policy import Policy
from trainer.update.ranks import Ranks

BRANCH = "learner-text"
LORA = LoraConfig(rank=8, alpha=16)


class Orders(Ranks):
    """A process that rank 0 gives these orders, alone at its work. Real ones are in `tests/engine/test_loop`."""

    def __init__(self, orders: Sequence[object]) -> None:
        super().__init__()
        object.__setattr__(self, "orders", iter([*orders, None]))

    @property
    def leads(self) -> bool:
        return False

    def from_first(self, value: Any) -> Any:
        return next(cast(Any, self).orders)


def learner_of(policy: Policy, ranks: Ranks | None = None, **changes: Any) -> Learner:
    settings: dict[str, Any] = {"seed": 3, "lora": LORA, "loss": LossConfig(), "optimiser": OptimiserConfig(lr=1e-3)}
    return Learner(policy, base="digest", budget=2048, ranks=ranks or Ranks(), **(settings | changes))


def install(policy: Policy, learner: Learner, folder: Path, branch: str = BRANCH) -> None:
    """What `prepare` does once the files of a revision are in a folder."""
    learner._install(branch, folder)
    learner.advance(branch, 0, "digest")


@pytest.fixture
def term() -> LossTerm:
    rng = np.random.default_rng(0)
    return LossTerm("native", (random_rollout(prompt("text"), [6, 3, 9], rng),))


@pytest.fixture(autouse=True)
def clean(policy: Policy) -> Any:
    yield
    for name in policy.adapters.names:
        if name.startswith("learner-"):
            policy.adapters.remove(name)


def weights(policy: Policy, branch: str = BRANCH) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in policy.adapters.parameters(branch).values()])


def test_a_new_branch_is_the_base_and_its_a_follows_the_seed(policy: Policy, tmp_path: Path) -> None:
    learner = learner_of(policy, seeds={"learner-b": 4})
    for branch in ("learner-a", "learner-b", "learner-c"):
        install(policy, learner, tmp_path, branch)
    a, b, c = (weights(policy, f"learner-{name}") for name in "abc")
    assert torch.equal(a, c), "with one start, all branches draw the same A"
    assert not torch.equal(a, b), "a branch with a seed of its own draws another"
    assert all((value == 0).all() for key, value in policy.adapters.parameters("learner-a").items() if "lora_B" in key)


def test_without_a_shared_start_every_branch_draws_its_own(policy: Policy, tmp_path: Path) -> None:
    learner = learner_of(policy, lora=LoraConfig(rank=8, alpha=16, shared_init=False))
    for branch in ("learner-a", "learner-b"):
        install(policy, learner, tmp_path, branch)
    assert not torch.equal(weights(policy, "learner-a"), weights(policy, "learner-b"))


def test_what_was_saved_is_installed_with_its_moments(policy: Policy, term: LossTerm, tmp_path: Path) -> None:
    """Two steps in one process, and one step, saved and taken up by another, end in the same bits."""
    (tmp_path / "start").mkdir()
    (tmp_path / "saved").mkdir()
    learner = learner_of(policy)
    install(policy, learner, tmp_path / "start")
    learner.learn(BRANCH, [term])
    learner.save(BRANCH, tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} >= {WEIGHTS, OPTIMISER}
    learner.advance(BRANCH, 1, "digest")
    learner.learn(BRANCH, [term])
    expected = weights(policy)

    successor = learner_of(policy)
    policy.adapters.remove(BRANCH)
    install(policy, successor, tmp_path / "saved")
    successor.learn(BRANCH, [term])
    assert torch.equal(weights(policy), expected)


@pytest.mark.parametrize(("on_fork", "share"), [("fresh", 1.0), ("warmup", 0.1), ("keep", None)])
def test_a_forks_first_update_is_the_one_that_is_asked_for(
    on_fork: Any, share: float | None, policy: Policy, term: LossTerm, tmp_path: Path
) -> None:
    """keep: the bits of its origin's next update. fresh: Adam's first, lr everywhere. warmup: a tenth of that."""
    (tmp_path / "start").mkdir()
    (tmp_path / "origin").mkdir()
    optimiser = OptimiserConfig(lr=1e-3, weight_decay=0.0, on_fork=on_fork)
    learner = learner_of(policy, optimiser=optimiser, forks=["learner-fork"])
    install(policy, learner, tmp_path / "start")
    learner.learn(BRANCH, [term])
    learner.save(BRANCH, tmp_path / "origin")
    learner.advance(BRANCH, 1, "digest")
    before = weights(policy)
    learner.learn(BRANCH, [term])
    if on_fork != "keep":
        (tmp_path / "origin" / OPTIMISER).unlink()  # as the store leaves it
    install(policy, learner, tmp_path / "origin", "learner-fork")
    assert torch.equal(weights(policy, "learner-fork"), before)
    learner.learn("learner-fork", [term])
    after = weights(policy, "learner-fork")
    if share is None:
        assert torch.equal(after, weights(policy))
    else:
        # Without moments m / sqrt(v) is the gradient's sign, wherever it is far above Adam's epsilon.
        assert (after - before).abs().median() == pytest.approx(share * 1e-3, rel=0.02)


def test_what_was_learnt_is_no_revision_until_it_is_published(policy: Policy, term: LossTerm, tmp_path: Path) -> None:
    learner = learner_of(policy)
    install(policy, learner, tmp_path)
    learner.learn(BRANCH, [term])
    with pytest.raises(KeyError):  # a second update without a revision between
        learner.learn(BRANCH, [term])
    learner.advance(BRANCH, 1, "digest")
    learner.learn(BRANCH, [term])


def test_the_canary_is_what_the_policy_says_after_the_update(policy: Policy, term: LossTerm, tmp_path: Path) -> None:
    learner = learner_of(policy)
    install(policy, learner, tmp_path)
    learner.learn(BRANCH, [term])
    text = Completion(np.array(CANARY_COMPLETION), np.zeros(len(CANARY_COMPLETION), np.float32))
    row = lay_out([Rollout(prompt("text"), np.array(CANARY_PROMPT), (text,))])
    assert learner.canary(BRANCH) == policy.measure(BRANCH, row)
    assert learner.canary(BRANCH) != policy.measure(None, row)


def test_a_follower_does_as_it_is_told(policy: Policy, term: LossTerm, tmp_path: Path) -> None:
    learner = learner_of(policy)
    install(policy, learner, tmp_path)
    learner.learn(BRANCH, [term])
    expected = weights(policy)
    policy.adapters.remove(BRANCH)
    learner_of(policy, Orders([("install", BRANCH, {}), ("learn", BRANCH, [term])])).follow()
    assert torch.equal(weights(policy), expected)
