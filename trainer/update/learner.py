"""The weights of a worker: one policy, its branches' adapters and optimisers, and which revision each of them is.

Several processes (`ranks`) hold the same weights and make each update together. Rank 0 alone talks to the service; it
orders, the others `follow`. What was learnt counts when it is published: until `advance` says so, the branch is no
revision and is brought again, so a step that is lost between the two, with its lease for instance, leaves nothing.
"""

import logging
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from adapters.manifest import CONFIG, OPTIMISER, WEIGHTS
from adapters.names import Ref
from clients.client import AsyncClient, RefusedError
from service.schemas import CANARY_COMPLETION, CANARY_PROMPT
from trainer.parts import LossTerm
from trainer.recipe import LoraConfig, LossConfig, OptimiserConfig
from trainer.update.optim import Optimiser
from trainer.update.packing import text_pack
from trainer.update.policy import Policy
from trainer.update.ranks import SINGLE_PROCESS, Ranks
from trainer.update.update import Update, update

log = logging.getLogger("worker")

_FORK_WARMUP = 10
"""Updates over which lr rises in a fork without moments. Adam divides by the root of the second moment, which a few
gradients say little of: with beta2 0.999 the first updates are as large as lr whatever the gradient."""


class Learner:
    def __init__(
        self,
        policy: Policy,
        *,
        base: str,
        seed: int,
        lora: LoraConfig,
        loss: LossConfig,
        optimiser: OptimiserConfig,
        budget: int,
        ranks: Ranks = SINGLE_PROCESS,
        seeds: Mapping[str, int] | None = None,
        forks: Collection[str] = (),
    ) -> None:
        """`base` is the base's digest; `seeds` are of branches that have one of their own; `forks` start at another's
        revision."""
        self.base = base
        self._policy = policy
        self._seeds, self._forks = dict(seeds or {}), frozenset(forks)
        self._seed, self._lora, self._loss, self._optimiser_config = seed, lora, loss, optimiser
        self._budget = budget
        self._ranks = ranks
        self._optimisers: dict[str, Optimiser] = {}
        self._revisions: dict[str, tuple[int, str]] = {}
        """The revision that each branch is here, and its digest."""
        self._without_moments: set[str] = set()
        """Branches whose next update begins with no moments, though their revision had some."""
        self._canaries: dict[str, list[float]] = {}

    # ---- rank 0 ----

    @property
    def packs(self) -> int:
        """How many were computed so far: what a long update is seen to live by."""
        return self._policy.packs

    async def prepare(self, ref: Ref, client: AsyncClient) -> None:
        """Makes sure that the branch is here at this revision, with the moments that belong to it."""
        assert ref.revision is not None
        manifest = await client.describe(ref.branch, ref.revision)
        # The usual case: this worker made the parent itself. By its digest: a revision that the store lost was made
        # again, perhaps by another worker, and is the same to rounding only.
        if self._revisions.get(ref.branch) == (ref.revision, manifest.digest):
            return
        with tempfile.TemporaryDirectory(prefix="coevo-") as folder:
            # Revision 0 has no files: a branch begins with a random A, drawn here, and B = 0.
            for name in manifest.files.keys() & {CONFIG, WEIGHTS}:
                await client.download(ref.branch, ref.revision, name, Path(folder) / name)
            self._without_moments.discard(ref.branch)
            if OPTIMISER in manifest.files:
                await self._download_moments(ref, client, Path(folder))
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir()} if self._ranks.count > 1 else {}
            self._ranks.from_first(("install", ref.branch, files))
            self._install(ref.branch, Path(folder))
        self._revisions[ref.branch] = ref.revision, manifest.digest

    async def _download_moments(self, ref: Ref, client: AsyncClient, folder: Path) -> None:
        assert ref.revision is not None
        try:
            await client.download(ref.branch, ref.revision, OPTIMISER, folder / OPTIMISER)
        except RefusedError as error:
            if error.status != 404:
                raise
            # Only the newest revisions and phase ends keep them. So the store has lost the revisions after this one.
            log.warning("%s: the optimiser's moments are gone, they begin anew; look for damage in the store", ref)
            self._without_moments.add(ref.branch)

    def learn(self, branch: str, terms: Sequence[LossTerm]) -> Update:
        """One training step on the weights of a branch, in all processes together."""
        if self._ranks.leads:
            self._ranks.from_first(("learn", branch, terms))
            del self._revisions[branch]  # until `advance`, the weights here are no revision
        result = update(
            self._policy,
            branch,
            self._optimisers[branch],
            terms,
            loss=self._loss,
            budget=self._budget,
            ranks=self._ranks,
        )
        self._budget = result.budget  # what did not fit once is not tried again
        if self._ranks.leads or self._policy.is_sharded:  # layers in parts are gathered by all processes together
            self._canaries[branch] = self._measure_canary(branch)
        if branch in self._without_moments:
            return replace(result, metrics={**result.metrics, "new_moments": 1.0})
        return result

    def advance(self, branch: str, revision: int, digest: str) -> None:
        """What is here is that revision now."""
        self._revisions[branch] = revision, digest
        self._without_moments.discard(branch)

    def save(self, branch: str, folder: Path) -> None:
        self._policy.adapters.save(branch, folder)
        self._optimisers[branch].save(folder)

    def canary(self, branch: str) -> list[float]:
        """What the engine must find when it serves what was learnt last."""
        return self._canaries[branch]

    def stop(self) -> None:
        """Ends the others' `follow`."""
        self._ranks.from_first(None)

    # ---- the other ranks ----

    def follow(self) -> None:
        """Does what rank 0 does, until it stops."""
        while (order := self._ranks.from_first(None)) is not None:
            action, branch, content = order
            if action == "learn":
                self.learn(branch, content)
                continue
            with tempfile.TemporaryDirectory(prefix="coevo-") as folder:
                for name, data in content.items():
                    (Path(folder) / name).write_bytes(data)
                self._install(branch, Path(folder))

    # ---- all of them ----

    def _install(self, branch: str, folder: Path) -> None:
        """The branch from the files in a folder; without any it starts at the base."""
        if branch in self._optimisers:
            self._policy.adapters.remove(branch)
        branch_seed = self._seeds.get(branch, self._seed)
        # With `shared_init` all branches draw the same A: their deltas live in one subspace and can be averaged.
        seed = f"{branch_seed}" if self._lora.shared_init else f"{branch_seed} {branch}"
        lora = self._lora
        self._policy.adapters.add(branch, rank=lora.rank, alpha=lora.alpha, seed=seed, modules=lora.modules)
        config = self._optimiser_config
        warms_up = config.on_fork == "warmup" and branch in self._forks
        self._optimisers[branch] = Optimiser(
            self._policy.adapters.parameters(branch),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            grad_norm=config.grad_norm,
            warmup_steps=max(config.warmup_steps, _FORK_WARMUP if warms_up else 0),
        )
        if (folder / WEIGHTS).exists():
            self._policy.adapters.load(branch, folder)
        if (folder / OPTIMISER).exists():
            self._optimisers[branch].load(folder)

    def _measure_canary(self, branch: str) -> list[float]:
        """The log-probabilities of a fixed text: the engine's must agree, or it serves other weights than these."""
        return self._policy.measure(branch, text_pack(CANARY_PROMPT, CANARY_COMPLETION))
