"""Every system of the paper's tables, for several seeds, as one plan: one engine, one worker, experts trained once.

    x          the experts s0-x-text and so on, forked and taught from by others
    mixed2     mixed RLVR of the pair             mixed3    of all capabilities
    vt, tv     static distillation of the pair: the second expert teaches the first, and the other way
    copd2      mutual distillation of the pair    noi, not  without what the second, or the first, teaches
    copd3      mutual, hub and spokes             neg       its steps without teachers: the control
    pairwise   mutual, each taught by each other
    mopd       a fresh student of all experts     pilot     fresh students of the experts' checkpoints
    mopd-equal of experts at 0.6 of their steps: as many steps in all as CoPD has
    sweep      copd3 with other shares of RLVR steps in a cycle: r1o4 has 1 of 5

Branches of one capability and seed draw the same prompts with the same chance at the same step, whichever system they
are of, so systems differ by what they do. Steps are matched as `method.rule` says. The pair is the hub and the first
other capability; in the paper, text and image.

Left out: what comes of it (`standings`), and merges, which are no steps.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from adapters.names import BASE, Ref
from trainer.plan.steps import Plan, Segment, Start
from trainer.plan.systems import alone, checkpoint_ages, copd, distilled, expert_steps, later_steps, negative
from trainer.recipe import BranchConfig, ComparisonConfig, Edge, MethodConfig, Recipe

EXPERTS = "x"
MERGED = "merged"
WATCHED = (EXPERTS, "copd2", "copd3")
"""Systems whose branches are compared with each other at every phase end."""
SINGLE_BRANCH_SYSTEMS = frozenset({EXPERTS, "mixed2", "mixed3", "vt", "tv", "mopd", "mopd-equal", "pilot"})
"""Systems whose branches are results of their own; those of the others are merged as well."""
PAIRED = frozenset({"mixed2", "vt", "tv", "copd2", "noi", "not"})
"""Systems of the pair: beside these alone no other capability has an expert."""


@dataclass(frozen=True, slots=True)
class SeedPlan:
    """What the systems of one seed are made of."""

    method: MethodConfig
    capabilities: tuple[str, ...]
    seed: int

    @property
    def prefix(self) -> str:
        return f"s{self.seed}"

    @property
    def pair(self) -> tuple[str, str]:
        return pair_of(self.method, self.capabilities)

    @property
    def reversed_pair(self) -> tuple[str, str]:
        return self.pair[1], self.pair[0]

    def branches(self, system: str, names: Iterable[str]) -> dict[str, BranchConfig]:
        return {f"{self.prefix}-{system}-{name}": BranchConfig(capabilities=(name,)) for name in names}

    def expert(self, name: str) -> str:
        return f"{self.prefix}-{EXPERTS}-{name}"


def pair_of(method: MethodConfig, capabilities: Sequence[str]) -> tuple[str, str]:
    """The hub and the first other capability."""
    hub = method.hub if method.hub is not None and method.hub in capabilities else capabilities[0]
    return hub, next(name for name in capabilities if name != hub)


def comparison(method: MethodConfig, capabilities: Sequence[str], asked: ComparisonConfig) -> Plan:
    plain = method.model_copy(update={"kind": "copd"})
    fields = [SeedPlan(plain, tuple(capabilities), asked.first_seed + number) for number in range(asked.seeds)]
    return _joined([
        one for field in fields for one in [_experts(field, asked), *(BUILD[name](field) for name in asked.systems)]
    ])  # fmt: skip


def of_seeds(recipe: Recipe, first: int, last: int, systems: tuple[str, ...] | None = None) -> Recipe:
    """The comparison of these seeds and those between, of the systems that the recipe asks for or of those given."""
    asked = recipe.comparison
    assert asked is not None
    changes = {"seeds": last - first + 1, "first_seed": first, "systems": asked.systems if systems is None else systems}
    return recipe.model_copy(update={"comparison": asked.model_copy(update=changes)})


def seed_and_system(name: str) -> tuple[int, str]:
    """Of a segment's system: `s0-copd3` is copd3 of seed 0."""
    place, system = name.split("-", 1)
    return int(place.removeprefix("s")), system


@dataclass(frozen=True, slots=True)
class Result:
    """A result: a branch at its end, or the merge of several."""

    system: str
    row: str
    """A capability's name, `merged`, or empty where the system is one branch."""
    seed: int
    refs: tuple[Ref, ...]

    @property
    def is_merge(self) -> bool:
        return len(self.refs) > 1

    @property
    def capabilities(self) -> list[str]:
        """Of the branches of a merge, which have one each."""
        return [ref.branch.split("-", 2)[2] for ref in self.refs]

    @property
    def model(self) -> str:
        """By what name the service answers it."""
        (ref, *others) = self.refs
        return f"s{self.seed}-{self.system}-{MERGED}" if others else f"{ref.branch}-{ref.revision}"


def planned_results(made: Plan) -> Iterator[Result]:
    """Of a plan of `comparison`: in its order, seed by seed. With the pilot, its teachers as they were."""
    systems: dict[str, dict[str, None]] = {}
    for segment in made.segments:
        systems.setdefault(segment.system, {})[segment.branch] = None
    teachers = {
        teacher.ref: None
        for segment in made.segments
        if segment.system.endswith("-pilot")
        for teacher in segment.steps[0].teachers
    }
    for name, branches in systems.items():
        seed, system = seed_and_system(name)
        heads = [Ref(branch, made.head(branch)) for branch in branches]
        for ref in heads:
            yield Result(system, ref.branch.removeprefix(name).removeprefix("-"), seed, (ref,))
        if system not in SINGLE_BRANCH_SYSTEMS:
            yield Result(system, MERGED, seed, tuple(heads))
        if system == EXPERTS:
            for ref in teachers:
                if ref.branch in branches:
                    capability = ref.branch.removeprefix(f"{name}-")
                    yield Result(EXPERTS, f"{capability}@{ref.revision}", seed, (ref,))
            yield Result("merge2", MERGED, seed, tuple(heads[:2]))
            if len(heads) > 2:
                yield Result("merge3", MERGED, seed, tuple(heads))


# ---- the systems ----


def _experts(field: SeedPlan, asked: ComparisonConfig) -> Plan:
    """The pair first. They stop for a moment where others learn from an earlier revision."""
    method = field.method
    others = () if asked.systems and PAIRED.issuperset(asked.systems) else field.capabilities
    branches = field.branches(EXPERTS, dict.fromkeys([*field.pair, *others]))
    ends = {expert_steps(method)}
    if "mopd-equal" in asked.systems:
        ends.add(expert_steps(_equal(method)))
    if "pilot" in asked.systems:
        ends.update(checkpoint_ages(method))
    ends.discard(method.expert_steps)
    segments = alone(method, branches, dict.fromkeys(branches, method.expert_steps), ends)
    return _marked(Plan(tuple(Start(name, BASE) for name in branches), tuple(segments)), field, EXPERTS)


def _mixed(system: str, names: Callable[[SeedPlan], Sequence[str]]) -> Callable[[SeedPlan], Plan]:
    def build(field: SeedPlan) -> Plan:
        branch, chosen = f"{field.prefix}-{system}", tuple(names(field))
        counts = {branch: field.method.expert_steps * len(chosen)}
        segments = alone(field.method, {branch: BranchConfig(capabilities=chosen)}, counts)
        return _marked(Plan((Start(branch, BASE),), tuple(segments)), field, system)

    return build


def _taught(
    field: SeedPlan, system: str, branch: str, origin: str, teachers: Sequence[str], steps: int, age: int
) -> Plan:
    """A student of experts as they were at an age."""
    mine = [Edge(branch, field.expert(name), field.method.beta) for name in teachers]
    segments = distilled(field.method, branch, 0, steps, mine, field.branches(EXPERTS, teachers), age)
    return _marked(Plan((Start(branch, origin),), tuple(segments)), field, system)


def _static(system: str, student: int) -> Callable[[SeedPlan], Plan]:
    """One of the pair goes on from its expert and learns from the other's."""

    def build(field: SeedPlan) -> Plan:
        name, teacher = field.pair[student], field.pair[1 - student]
        age, steps = expert_steps(field.method), later_steps(field.method, 2)
        origin = f"{field.expert(name)}@{age}"
        return _taught(field, system, f"{field.prefix}-{system}", origin, [teacher], steps, age)

    return build


def _mopd(
    system: str, rule: Callable[[MethodConfig], MethodConfig] = lambda method: method
) -> Callable[[SeedPlan], Plan]:
    def build(field: SeedPlan) -> Plan:
        method, names = rule(field.method), field.capabilities
        age, steps = expert_steps(method), later_steps(method, len(names))
        return _taught(field, system, f"{field.prefix}-{system}", BASE, names, steps, age)

    return build


def _equal(method: MethodConfig) -> MethodConfig:
    return method.model_copy(update={"rule": "equal"})


def _pilot(field: SeedPlan) -> Plan:
    """Students with as many steps as a branch has of mutual distillation."""
    steps = field.method.cycles * field.method.opd_steps
    made = [
        _taught(field, "pilot", f"{field.prefix}-pilot-{name}-{age}", BASE, [name], steps, age)
        for name in field.capabilities
        for age in checkpoint_ages(field.method)
    ]
    return _joined(made)


def _mutual(
    system: str,
    names: Callable[[SeedPlan], Sequence[str]],
    topology: Literal["pairwise", "hub", "explicit"] = "pairwise",
    pairs: Callable[[SeedPlan], Sequence[tuple[str, str]]] = lambda _: (),
) -> Callable[[SeedPlan], Plan]:
    """`pairs` of student and teacher are for topology explicit."""

    def build(field: SeedPlan) -> Plan:
        branches = field.branches(system, names(field))
        start = f"{field.prefix}-{system}-"
        edges = [{"student": f"{start}{a}", "teacher": f"{start}{b}"} for a, b in pairs(field)]
        kind = "negative" if system == "neg" else "copd"
        hub = f"{start}{field.pair[0]}" if topology == "hub" else None
        changes = {"kind": kind, "topology": topology, "hub": hub, "edges": edges, "steps": None}
        own = MethodConfig.model_validate(field.method.model_dump() | changes)
        return _marked(negative(own, branches) if kind == "negative" else copd(own, branches), field, system)

    return build


def _sweep(field: SeedPlan) -> Plan:
    method = field.method
    length = method.rlvr_steps + method.opd_steps
    made: list[Plan] = []
    for steps in range(1, length):
        if steps != method.rlvr_steps:  # that is copd3
            own = method.model_copy(update={"rlvr_steps": steps, "opd_steps": length - steps})
            build = _mutual(f"r{steps}o{length - steps}", _all, "hub")
            made.append(build(replace(field, method=own)))
    return _joined(made)


def shares_of(systems: Iterable[str]) -> dict[str, tuple[int, int]]:
    """RLVR and distillation steps in a cycle, of those that are of the sweep."""
    return {one: (int(found[1]), int(found[2])) for one in systems if (found := re.fullmatch(r"r(\d+)o(\d+)", one))}


def _all(field: SeedPlan) -> Sequence[str]:
    return field.capabilities


def _both(field: SeedPlan) -> Sequence[str]:
    return field.pair


BUILD: Mapping[str, Callable[[SeedPlan], Plan]] = {
    "mixed2": _mixed("mixed2", _both),
    "vt": _static("vt", 0),
    "tv": _static("tv", 1),
    "copd2": _mutual("copd2", _both),
    "noi": _mutual("noi", _both, "explicit", lambda field: [field.reversed_pair]),
    "not": _mutual("not", _both, "explicit", lambda field: [field.pair]),
    "mixed3": _mixed("mixed3", _all),
    "mopd": _mopd("mopd"),
    "mopd-equal": _mopd("mopd-equal", _equal),
    "copd3": _mutual("copd3", _all, "hub"),
    "neg": _mutual("neg", _all, "hub"),
    "pairwise": _mutual("pairwise", _all),
    "pilot": _pilot,
    "sweep": _sweep,
}


def _joined(plans: Sequence[Plan]) -> Plan:
    return Plan(
        tuple(start for one in plans for start in one.starts),
        tuple(segment for one in plans for segment in one.segments),
    )


def _marked(made: Plan, field: SeedPlan, system: str) -> Plan:
    """With its seed, what it is compared with, and by which names its branches draw: what follows their system's."""
    name = f"{field.prefix}-{system}"

    def marked(segment: Segment) -> Segment:
        stream = segment.branch.removeprefix(f"{name}-")
        steps = tuple(
            replace(step, seed=field.seed, stream=stream.removeprefix(f"{field.prefix}-")) for step in segment.steps
        )
        return replace(segment, steps=steps, system=name, is_watched=system in WATCHED)

    starts = tuple(replace(one, seed=field.seed) for one in made.starts)
    return Plan(starts, tuple(marked(segment) for segment in made.segments))
