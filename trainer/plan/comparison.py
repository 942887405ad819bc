"""Every system of the paper's tables, for several seeds, as one plan: one engine, one worker, experts trained once.

    experts        one of each capability, s0-experts-text and so on; others fork them and learn from them
    mixed2         mixed RLVR of the pair             mixed3         of all capabilities
    static_v2t     static distillation of the pair: the second expert teaches the first
    static_t2v     the same, the other way
    copd2          mutual distillation of the pair
    no_image_edge  without what the second teaches    no_text_edge   without what the first teaches
    copd3          mutual, hub and spokes             no_teachers    its steps without teachers: the control
    pairwise       mutual, each taught by each other
    mopd           a fresh student of all experts
    pilot          students of the pair's second expert, prepared on the first's prompts at different temperatures
    ages           fresh students of the experts as they were at growing ages
    mopd-equal     of experts at 0.6 of their steps: as many steps in all as CoPD has
    mopd-tokens, mixed3-tokens, merge3-tokens
                   mopd, mixed3 and the merge of experts when they have had as many rollouts as copd3 has: equal
                   generated tokens, to the few per cent by which capabilities' answers differ
    sweep          copd3 with other shares of RLVR steps in a cycle: r1o4 has 1 of 5

Branches of one capability and seed draw the same prompts with the same chance at the same step, whichever system they
are of, so systems differ by what they do. Steps are matched as `method.rule` says (`systems`). The pair is the hub and
the first other capability; in the paper, text and image.

Some systems are one branch at two of its revisions: mopd-tokens is mopd before its end, mixed3-tokens is mixed3 after
it, merge3-tokens has the experts after theirs. Steps of such a branch are made once, and labelled with the first of its
systems that needs them.

Left out: what of it is examined (`results`), what comes of it (`trainer.compare`), and merges, which are no steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from adapters.names import BASE, Ref
from trainer.plan.seed_plan import EXPERTS, SeedPlan, joined, labelled
from trainer.plan.steps import Plan, Start
from trainer.plan.systems import (
    alone,
    checkpoint_ages,
    copd,
    distilled,
    expert_steps,
    later_steps,
    negative,
    prepared,
    temperature_rows,
)
from trainer.recipe import BranchConfig, ComparisonConfig, Edge, MethodConfig, Recipe, RolloutConfig

PILOT, AGES = "pilot", "ages"
ONE_TEACHER = frozenset({PILOT, AGES})
"""Systems of students that each have one expert as it was at an age, and are read against it alone."""
MERGED = "merged"
SINGLE_BRANCH_SYSTEMS = frozenset(
    {
        EXPERTS,
        "mixed2",
        "mixed3",
        "mixed3-tokens",
        "static_v2t",
        "static_t2v",
        "mopd",
        "mopd-equal",
        "mopd-tokens",
        *ONE_TEACHER,
    }
)
"""Systems whose branches are results in themselves; those of all others are merged as well."""
PAIRED = frozenset({"mixed2", "static_v2t", "static_t2v", "copd2", "no_image_edge", "no_text_edge", PILOT})
"""Systems of the pair: beside these alone no third capability has an expert."""


def comparison(
    method: MethodConfig, capabilities: Sequence[str], config: ComparisonConfig, rollout: RolloutConfig
) -> Plan:
    plain = method.model_copy(update={"kind": "copd"})
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    # Of two systems that share a branch the one that ends first labels its steps: it comes first in BUILD.
    systems = tuple(sorted(config.systems, key=list(BUILD).index))
    seed_plans = [SeedPlan(plain, tuple(capabilities), seed, rollout, systems) for seed in seeds]
    # Experts first: most other systems fork them or learn from them.
    return joined([
        plan
        for seed_plan in seed_plans
        for plan in (_experts(seed_plan), *(BUILD[name](seed_plan) for name in seed_plan.systems))
    ])  # fmt: skip


def of_seeds(recipe: Recipe, first: int, last: int, systems: tuple[str, ...] | None = None) -> Recipe:
    """The comparison of these seeds and those between, of the systems that the recipe asks for or of those given."""
    config = recipe.comparison
    assert config is not None
    systems = config.systems if systems is None else systems
    changes = {"seeds": last - first + 1, "first_seed": first, "systems": systems}
    return recipe.model_copy(update={"comparison": config.model_copy(update=changes)})


# ---- the systems ----


def _experts(seed_plan: SeedPlan) -> Plan:
    """The pair first, as `merge2` takes the first two."""
    method, pair, systems = seed_plan.method, seed_plan.pair, seed_plan.systems
    # With no other system asked for, the experts are all that is wanted, so all capabilities have one.
    is_pair_enough = systems and PAIRED.issuperset(systems)
    names = list(dict.fromkeys(pair if is_pair_enough else (*pair, *seed_plan.capabilities)))
    count = method.expert_steps
    if "merge3-tokens" in systems:
        count = max(count, round(_copd_rollouts(seed_plan) / (len(names) * _native(seed_plan))))
    # They stop for a moment where others learn from an earlier revision: only the end of a segment is never retired.
    ends = {expert_steps(method), method.expert_steps}
    if "mopd-equal" in systems:
        ends.add(expert_steps(_equal(method)))
    if AGES in systems:
        ends.update(checkpoint_ages(method))
    ends.discard(count)
    branches = seed_plan.branches(EXPERTS, names)
    segments = list(alone(method, branches, dict.fromkeys(branches, count), ends))
    plan = labelled(Plan(tuple(Start(name, BASE) for name in branches), tuple(segments)), seed_plan, EXPERTS, names)
    # What goes on after S steps is for that merge alone.
    return replace(
        plan,
        segments=tuple(
            segment
            if segment.first < method.expert_steps
            else replace(segment, system="merge3-tokens", is_watched=False)
            for segment in plan.segments
        ),
    )


def _mixed(
    seed_plan: SeedPlan, system: str, capabilities: tuple[str, ...], *, steps: int | None = None, branch: str = ""
) -> Plan:
    """One branch on the data of all these capabilities: as many steps as their experts have together, or those given;
    `branch` names it where another system has it too."""
    method, name = seed_plan.method, branch or system
    whole = method.expert_steps * len(capabilities)
    config = {seed_plan.branch(name): BranchConfig(capabilities=capabilities)}
    count = whole if steps is None else steps
    segments = alone(method, config, dict.fromkeys(config, count), {whole} - {count})
    plan = Plan((Start(seed_plan.branch(name), BASE),), tuple(segments))
    return labelled(plan, seed_plan, system, branch=name)


def _distilled(
    seed_plan: SeedPlan,
    system: str,
    teachers: Sequence[str],
    *,
    age: int,
    steps: int,
    origin: str = BASE,
    row: str = "",
    branch: str = "",
    end: int | None = None,
) -> Plan:
    """A student of experts as they were at an age. `branch` names it where another system has it too, which ends at
    `end`."""
    method, name = seed_plan.method, branch or system
    student = seed_plan.branch(name, row)
    experts = seed_plan.branches(EXPERTS, teachers)
    teaching = [Edge(student, expert, method.beta) for expert in experts]
    cut = steps if end is None else min(end, steps)
    segments = [
        segment
        for first, count in ((0, cut), (cut, steps - cut))
        for segment in distilled(method, student, first, count, teaching, experts, age)
    ]
    plan = Plan((Start(student, origin),), tuple(segments))
    return labelled(plan, seed_plan, system, [row], branch=name)


def _static(seed_plan: SeedPlan, system: str, student: str, teacher: str) -> Plan:
    """One of the pair goes on from its expert and learns from the other's."""
    age, steps = expert_steps(seed_plan.method), later_steps(seed_plan.method, 2)
    origin = str(Ref(seed_plan.branch(EXPERTS, student), age))
    return _distilled(seed_plan, system, [teacher], age=age, steps=steps, origin=origin)


def _mopd(seed_plan: SeedPlan, system: str, method: MethodConfig) -> Plan:
    """`method` has the rule that steps are matched by."""
    names = seed_plan.capabilities
    end = _mopd_tokens(seed_plan) if system == "mopd" and "mopd-tokens" in seed_plan.systems else None
    return _distilled(
        seed_plan, system, names, age=expert_steps(method), steps=later_steps(method, len(names)), end=end
    )


def _equal(method: MethodConfig) -> MethodConfig:
    return method.model_copy(update={"rule": "equal"})


# ---- equal generated tokens ----


def _native(seed_plan: SeedPlan) -> int:
    """The rollouts of a step on its branch's own data."""
    return seed_plan.rollout.prompts * seed_plan.rollout.group_size


def _copd_rollouts(seed_plan: SeedPlan) -> int:
    """Those of all branches of copd3: K S native batches, and in each OPD step a teacher's batch for each edge."""
    method, count = seed_plan.method, len(seed_plan.capabilities)
    prompts, group_size = seed_plan.rollout.opd_batch
    edges = 2 * (count - 1)  # between the hub and each spoke, both ways
    native = count * method.expert_steps * _native(seed_plan)
    return native + edges * method.cycles * method.opd_steps * prompts * group_size


def _mopd_tokens(seed_plan: SeedPlan) -> int:
    """The steps of a student with as many of teachers' batches as all of copd3 has."""
    method, count = seed_plan.method, len(seed_plan.capabilities)
    # Experts have the native rollouts of copd3 already: K S batches. A step of the student has K batches.
    return max(1, round(2 * (count - 1) * method.cycles * method.opd_steps / count))


def _pilot(seed_plan: SeedPlan) -> Plan:
    """Students that draw alike. Prepared on the other capability of the pair: they should differ in how they answer,
    hardly in what they know of the expert's."""
    method, (first, second) = seed_plan.method, seed_plan.pair
    experts, rows = seed_plan.branches(EXPERTS, [second]), temperature_rows(method)
    segments = [
        segment
        for row, temperature in rows.items()
        for expert in experts
        for segment in prepared(
            method, (first,), temperature, Edge(seed_plan.branch(PILOT, row), expert, method.beta), experts
        )
    ]
    plan = Plan(tuple(Start(seed_plan.branch(PILOT, row), BASE) for row in rows), tuple(segments))
    whole = labelled(plan, seed_plan, PILOT, rows, stream=PILOT)
    # How alike student and expert are is asked once, before the student listens.
    watched = (replace(segment, is_watched=segment.kind == "rlvr") for segment in whole.segments)
    return replace(whole, segments=tuple(watched))


def _ages(seed_plan: SeedPlan) -> Plan:
    """Students with as many steps as a branch has of mutual distillation."""
    steps = seed_plan.method.cycles * seed_plan.method.opd_steps
    return joined([
        _distilled(seed_plan, AGES, [name], age=age, steps=steps, row=f"{name}-{age}")
        for name in seed_plan.capabilities
        for age in checkpoint_ages(seed_plan.method)
    ])  # fmt: skip


def _mutual(
    seed_plan: SeedPlan,
    system: str,
    capabilities: Sequence[str],
    topology: Literal["pairwise", "hub", "explicit"] = "pairwise",
    pairs: Sequence[tuple[str, str]] = (),
    *,
    kind: Literal["copd", "negative"] = "copd",
) -> Plan:
    """`pairs` of student and teacher are for topology explicit."""
    branches = seed_plan.branches(system, capabilities)
    edges = [
        {"student": seed_plan.branch(system, student), "teacher": seed_plan.branch(system, teacher)}
        for student, teacher in pairs
    ]
    hub = seed_plan.branch(system, seed_plan.pair[0]) if topology == "hub" else None
    changes = {"kind": kind, "topology": topology, "hub": hub, "edges": edges, "steps": None}
    method = MethodConfig.model_validate(seed_plan.method.model_dump() | changes)
    plan = negative(method, branches) if kind == "negative" else copd(method, branches)
    return labelled(plan, seed_plan, system, capabilities)


def _sweep(seed_plan: SeedPlan) -> Plan:
    plans: list[Plan] = []
    for system, (rlvr_steps, opd_steps) in sweep_shares(seed_plan.method).items():
        method = seed_plan.method.model_copy(update={"rlvr_steps": rlvr_steps, "opd_steps": opd_steps})
        plans.append(_mutual(replace(seed_plan, method=method), system, seed_plan.capabilities, "hub"))
    return joined(plans)


def sweep_shares(method: MethodConfig) -> dict[str, tuple[int, int]]:
    """RLVR and distillation steps in a cycle, by the names of the sweep's systems."""
    length = method.rlvr_steps + method.opd_steps
    # The method's own share is copd3.
    return {f"r{n}o{length - n}": (n, length - n) for n in range(1, length) if n != method.rlvr_steps}


BUILD: Mapping[str, Callable[[SeedPlan], Plan]] = {
    "mixed2": lambda s: _mixed(s, "mixed2", s.pair),
    "static_v2t": lambda s: _static(s, "static_v2t", student=s.pair[0], teacher=s.pair[1]),
    "static_t2v": lambda s: _static(s, "static_t2v", student=s.pair[1], teacher=s.pair[0]),
    "copd2": lambda s: _mutual(s, "copd2", s.pair),
    # Of the pair's two edges one is left: the first of it teaches the second, or the other way.
    "no_image_edge": lambda s: _mutual(s, "no_image_edge", s.pair, "explicit", [(s.pair[1], s.pair[0])]),
    "no_text_edge": lambda s: _mutual(s, "no_text_edge", s.pair, "explicit", [s.pair]),
    "mixed3": lambda s: _mixed(s, "mixed3", s.capabilities),
    "mixed3-tokens": lambda s: _mixed(
        s, "mixed3-tokens", s.capabilities, steps=round(_copd_rollouts(s) / _native(s)), branch="mixed3"
    ),
    "mopd-tokens": lambda s: _distilled(
        s, "mopd-tokens", s.capabilities, age=s.method.expert_steps, steps=_mopd_tokens(s), branch="mopd"
    ),
    "merge3-tokens": lambda s: Plan((), ()),  # its steps are the experts'
    # By the rule of the recipe, and by the equal one whatever the recipe says.
    "mopd": lambda s: _mopd(s, "mopd", s.method),
    "mopd-equal": lambda s: _mopd(s, "mopd-equal", _equal(s.method)),
    "copd3": lambda s: _mutual(s, "copd3", s.capabilities, "hub"),
    "no_teachers": lambda s: _mutual(s, "no_teachers", s.capabilities, "hub", kind="negative"),
    "pairwise": lambda s: _mutual(s, "pairwise", s.capabilities),
    PILOT: _pilot,
    AGES: _ages,
    "sweep": _sweep,
}
