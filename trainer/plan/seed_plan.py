"""What the plans of a comparison's systems have in common: their names, seeds and streams of chance.

Left out: the systems themselves (`comparison`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from trainer.plan.steps import Plan, Segment, Start
from trainer.recipe import BranchConfig, MethodConfig, RolloutConfig

EXPERTS = "experts"
WATCHED = (EXPERTS, "copd2", "copd3")
"""Systems whose branches are compared with each other at every phase end: what drifts apart, and what does not."""


@dataclass(frozen=True, slots=True)
class SeedPlan:
    """What the systems of one seed are made of."""

    method: MethodConfig
    capabilities: tuple[str, ...]
    seed: int
    rollout: RolloutConfig
    systems: tuple[str, ...]
    """Those that are asked for: a branch that is several of them stops where each ends."""

    @property
    def pair(self) -> tuple[str, str]:
        return pair_of(self.method, self.capabilities)

    def branch(self, system: str, row: str = "") -> str:
        """The name of a branch, `s0-copd3-text`; of a system that has only one, `s0-mopd`."""
        return "-".join(filter(None, (f"s{self.seed}", system, row)))

    def branches(self, system: str, capabilities: Iterable[str]) -> dict[str, BranchConfig]:
        return {self.branch(system, name): BranchConfig(capabilities=(name,)) for name in capabilities}


def pair_of(method: MethodConfig, capabilities: Sequence[str]) -> tuple[str, str]:
    """The hub and the first other capability."""
    hub = method.hub if method.hub is not None and method.hub in capabilities else capabilities[0]
    return hub, next(name for name in capabilities if name != hub)


def joined(plans: Sequence[Plan]) -> Plan:
    """One plan of several; what two have of one branch, once."""
    starts: dict[str, Start] = {}
    segments: dict[str, Segment] = {}
    for plan in plans:
        for start in plan.starts:
            starts.setdefault(start.branch, start)
        for segment in plan.segments:
            segments.setdefault(segment.id, segment)
    return Plan(tuple(starts.values()), tuple(segments.values()))


def labelled(
    plan: Plan, seed_plan: SeedPlan, system: str, rows: Iterable[str] = ("",), *, branch: str = "", stream: str = ""
) -> Plan:
    """The plan of a system, with its seed, and with what its branches are compared with and draw alike: `stream`, where
    that is not for each row its own."""
    name = branch or system
    row_of = {seed_plan.branch(name, row): row for row in rows}
    segments: list[Segment] = []
    for segment in plan.segments:
        row = row_of[segment.branch]
        # The capability alone, so that branches of one capability draw alike in all systems. Where a system is one
        # branch, nothing else has its mixture of prompts, and it draws under the branch's name.
        steps = tuple(replace(step, seed=seed_plan.seed, stream=stream or row or name) for step in segment.steps)
        segments.append(replace(segment, steps=steps, system=system, row=row, is_watched=system in WATCHED))
    return Plan(tuple(replace(start, seed=seed_plan.seed) for start in plan.starts), tuple(segments))
