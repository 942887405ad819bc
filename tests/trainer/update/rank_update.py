"""Updates as several processes make them, and as one does: torchrun -m tests.trainer.update.rank_update FOLDER [shard]

Every process leaves what it has after each update. With `shard` it says what it holds of the layers, and makes the
updates once more with activations that are computed again, into a folder of their own.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.distributed.tensor import DTensor

from tests.trainer.update.packs import BASE, noisy, prompt, random_rollout
from trainer.parts import LossTerm
from trainer.recipe import LossConfig
from trainer.update.optim import Optimiser
from trainer.update.packing import pack, share_out
from trainer.update.policy import Policy, load_policy
from trainer.update.ranks import Ranks, joined
from trainer.update.update import update

ADAPTER = "shared"
BUDGET = 96
LR = 1e-4
LOSSES = {
    "uneven": LossConfig(),
    "one pack": LossConfig(normalise="token"),
    "two updates a batch": LossConfig(updates_per_batch=2, eps_low=0.01, eps_high=0.01),
}
UPDATES = 3
RECOMPUTED = "recomputed"


def make_terms(case: str, step: int) -> tuple[LossTerm, ...]:
    rng = np.random.default_rng(step)
    if case == "one pack":
        return (LossTerm("native", (random_rollout(prompt("text", step), [5, 1, 8], rng),)),)
    if case == "two updates a batch":
        return (LossTerm("native", (random_rollout(prompt("image", step), [3, 40, 25, 30], rng),)),)
    native = [("text", [9, 1, 180]), ("image", [3, 40, 25]), ("video", [2, 2, 30, 12]), ("two images", [7])]
    taught = [("text", [4, 20]), ("video", [1, 6])]
    return (
        LossTerm("native", tuple(random_rollout(prompt(kind, step), lengths, rng) for kind, lengths in native)),
        LossTerm(
            "teacher", tuple(random_rollout(prompt(kind, step), lengths, rng, top_k=4) for kind, lengths in taught)
        ),
    )


def num_packs(terms: Sequence[LossTerm], ranks: int) -> list[list[int]]:
    """How many packs of each term each process takes."""
    return [[len(share) for share in share_out(pack(term.rollouts, BUDGET), ranks)] for term in terms]


def train(policy: Policy, case: str, folder: Path, ranks: Ranks) -> None:
    """A few updates of a new adapter; rank 0 makes the terms for all."""
    noisy(policy, ADAPTER, 0, rank=4, alpha=8)
    optimiser = Optimiser(policy.adapters.parameters(ADAPTER), lr=LR)
    metrics: list[object] = []
    keep(policy, folder, f"{case}-0-{ranks.rank}")
    for step in range(UPDATES):
        terms = ranks.from_first(make_terms(case, step) if ranks.leads else None)
        done = update(policy, ADAPTER, optimiser, terms, loss=LOSSES[case], budget=BUDGET, ranks=ranks)
        assert done.skipped is None
        metrics.append(done.metrics)
        keep(policy, folder, f"{case}-{step + 1}-{ranks.rank}")
    (folder / f"{case}-{ranks.rank}.json").write_text(json.dumps(metrics))
    policy.adapters.remove(ADAPTER)


def keep(policy: Policy, folder: Path, name: str) -> None:
    (folder / name).mkdir(parents=True)
    policy.adapters.save(ADAPTER, folder / name)


def held_bytes(policy: Policy) -> dict[str, int]:
    """What this process holds of the layers between two updates, and of everything else."""
    held = {"layers": 0, "rest": 0}
    for name, tensor in policy._model.named_parameters():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        # Of its storage and not of its shape: a view would keep the whole tensor alive.
        held["layers" if ".language_model.layers." in name else "rest"] += local.untyped_storage().nbytes()
    return held


def main(folder: Path, shard: bool, ranks: Ranks) -> None:
    policy = load_policy(BASE, dtype="float32", shard=shard)
    assert policy.is_sharded == shard
    for case in LOSSES:
        train(policy, case, folder, ranks)
    if shard:
        (folder / f"held-{ranks.rank}.json").write_text(json.dumps(held_bytes(policy)))
        policy.recompute_layers()
        for case in LOSSES:
            train(policy, case, folder / RECOMPUTED, ranks)


if __name__ == "__main__":
    with joined() as these:
        main(Path(sys.argv[1]), "shard" in sys.argv, these)
