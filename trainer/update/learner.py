"""The weights of a worker: one policy, its branches' adapters and optimisers, and which revision each of them is.

Several processes (`ranks`) hold the same weights and make each update together. Rank 0 alone talks to the service; it
orders, the others `follow`. What was learnt counts when it is published: until `advance` says so, the branch is no
revision and is brought again, so a step that is lost between the two, with its lease for instance, leaves nothing.

Left out: the mathematics (`update`) and the network, but for bringing a revision that is not here (`prepare`).
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from adapters.manifest import OPTIMISER, WEIGHTS
from adapters.names import Ref
from clients.client import AsyncClient
from service.schemas import CANARY_COMPLETION, CANARY_PROMPT
from trainer import recipe
from trainer.parts import Group, LossTerm, TrainingSample
from trainer.update.optim import Optimiser
from trainer.update.packing import lay_out
from trainer.update.policy import Policy
from trainer.update.ranks import SINGLE_PROCESS, Ranks
from trainer.update.update import Update, update


class Learner:
    def __init__(
        self,
        policy: Policy,
        *,
        base: str,
        seed: int,
        lora: recipe.LoraConfig,
        loss: recipe.LossConfig,
        optimiser: recipe.OptimiserConfig,
        budget: int,
        ranks: Ranks = SINGLE_PROCESS,
        seeds: Mapping[str, int] | None = None,
    ) -> None:
        """`seeds` of branches that have one of their own."""
        self.base = base
        """Its digest."""
        self._policy = policy
        self._seeds = dict(seeds or {})
        self._seed, self._lora, self._loss, self._settings = seed, lora, loss, optimiser
        self._budget = budget
        self._ranks = ranks
        self._optimisers: dict[str, Optimiser] = {}
        self._revisions: dict[str, int] = {}
        self._canaries: dict[str, list[float]] = {}

    # ---- rank 0 ----

    async def prepare(self, ref: Ref, client: AsyncClient) -> None:
        """Makes sure that the branch is here at this revision, with the moments that belong to it."""
        assert ref.revision is not None
        if self._revisions.get(ref.branch) == ref.revision:
            return
        manifest = await client.describe(ref.branch, ref.revision)
        with tempfile.TemporaryDirectory(prefix="coevo-") as folder:
            for name in manifest.files.keys() & {WEIGHTS, OPTIMISER}:
                await client.download(ref.branch, ref.revision, name, Path(folder) / name)
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir()} if self._ranks.count > 1 else {}
            self._ranks.from_first(("place", ref.branch, files))
            self._place(ref.branch, Path(folder))
        self._revisions[ref.branch] = ref.revision

    def learn(self, branch: str, parts: Sequence[LossTerm]) -> Update:
        """One training step on the weights of a branch, in all processes together."""
        self._ranks.from_first(("learn", branch, parts))
        del self._revisions[branch]
        done = self._update(branch, parts)
        self._canaries[branch] = self._measured(branch)
        return done

    def advance(self, branch: str, revision: int) -> None:
        """What is here is that revision now."""
        self._revisions[branch] = revision

    def save(self, branch: str, folder: Path) -> None:
        self._policy.adapters.save(branch, folder)
        self._optimisers[branch].save(folder)

    def canary(self, branch: str) -> list[float]:
        """What the engine must find when it serves what was learnt last."""
        return self._canaries[branch]

    def _measured(self, branch: str) -> list[float]:
        ids_C = np.array(CANARY_COMPLETION, np.int64)
        nothing_C = np.zeros(len(ids_C), np.float32)
        group = Group(np.array(CANARY_PROMPT, np.int64), (), (), (TrainingSample(ids_C, nothing_C, nothing_C),))
        return self._policy.measure(branch, lay_out([group]))

    def stop(self) -> None:
        """Ends the others' `follow`."""
        self._ranks.from_first(None)

    # ---- the other ranks ----

    def follow(self) -> None:
        """Does what rank 0 does, until it stops."""
        while (order := self._ranks.from_first(None)) is not None:
            what, branch, content = order
            if what == "place":
                with tempfile.TemporaryDirectory(prefix="coevo-") as folder:
                    _write(content, Path(folder))
                    self._place(branch, Path(folder))
            else:
                self._update(branch, content)

    # ---- all of them ----

    def _place(self, branch: str, folder: Path) -> None:
        """The branch from the files in a folder; without any it starts at the base."""
        if branch in self._optimisers:
            self._policy.adapters.remove(branch)
        own = self._seeds.get(branch, self._seed)
        seed = f"{own}" if self._lora.shared_init else f"{own} {branch}"
        self._policy.adapters.add(branch, rank=self._lora.rank, alpha=self._lora.alpha, seed=seed)
        settings = self._settings
        self._optimisers[branch] = Optimiser(
            self._policy.adapters.parameters(branch),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            grad_norm=settings.grad_norm,
            warmup_steps=settings.warmup_steps,
        )
        if (folder / WEIGHTS).exists():
            self._policy.adapters.load(branch, folder)
        if (folder / OPTIMISER).exists():
            self._optimisers[branch].load(folder)

    def _update(self, branch: str, parts: Sequence[LossTerm]) -> Update:
        done = update(
            self._policy,
            branch,
            self._optimisers[branch],
            parts,
            loss=self._loss,
            budget=self._budget,
            ranks=self._ranks,
        )
        self._budget = done.budget
        return done


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)
