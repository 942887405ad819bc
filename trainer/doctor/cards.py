"""How a run lies on cards: how many it takes, and on how many hosts.

    engine    data_parallel cores, each on tensor_parallel cards of one host
    workers   so many, each a torchrun of so many processes with a card each, on one host

One core of one card and one worker of one process share theirs; all others have cards of their own. What a card holds
is in `memory`, how long it takes in `price`.
"""

from dataclasses import dataclass

from adapters.errors import UserError
from trainer.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Spread:
    data_parallel: int = 1
    tensor_parallel: int = 1
    workers: int = 1
    processes: int = 1
    """The processes of each worker."""
    shard: bool = False
    """Each process of a worker holds its part of the base's layers."""

    @property
    def engine_cards(self) -> int:
        return self.data_parallel * self.tensor_parallel

    @property
    def worker_cards(self) -> int:
        return self.workers * self.processes

    @property
    def is_shared(self) -> bool:
        return self.engine_cards == self.worker_cards == 1

    @property
    def cards(self) -> int:
        return 1 if self.is_shared else self.engine_cards + self.worker_cards

    @property
    def shards(self) -> int:
        return self.processes if self.shard else 1

    def hosts(self, cards_per_host: int) -> int:
        """The fewest hosts, with every core and every worker whole on one of them."""
        if self.is_shared:
            return 1
        # Both talk at every layer: between hosts that would be many times slower.
        groups = [self.tensor_parallel] * self.data_parallel + [self.processes] * self.workers
        free: list[int] = []
        # The largest first, each where there is room: sizes that divide each other leave no gap so.
        for group in sorted(groups, reverse=True):
            host = next((number for number, cards in enumerate(free) if cards >= group), None)
            if host is None:
                free.append(cards_per_host - group)
            else:
                free[host] -= group
        return len(free)

    def __str__(self) -> str:
        if self.is_shared:
            return "service and worker on one card"
        cores = f"{self.data_parallel} core{'s' * (self.data_parallel > 1)} of {self.tensor_parallel}"
        workers = f"{self.workers} worker{'s' * (self.workers > 1)} of {self.processes}"
        return f"{cores}, {workers}{', the base in shards' if self.shards > 1 else ''}"


ONE_CARD = Spread()


def spread_of(recipe: Recipe, *, workers: int = 1, processes: int = 1, cards_per_host: int = 8) -> Spread:
    """A UserError where a core or a worker fits on no host, or where processes would idle."""
    engine = recipe.engine
    spread = Spread(engine.data_parallel, engine.tensor_parallel, workers, processes, recipe.worker.shard)
    for name, size in (("engine.tensor_parallel", spread.tensor_parallel), ("--processes", processes)):
        if size > cards_per_host:
            raise UserError(f"{name} is {size}, and a host has {cards_per_host} cards: lower it, or --cards-per-host")
    if workers > len(recipe.branches):
        raise UserError(f"--workers {workers}: there are {len(recipe.branches)} branches, and each has one at a time")
    return spread
