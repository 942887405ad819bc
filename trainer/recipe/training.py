"""The sections of a recipe that say how a branch learns: what it samples, the loss, the optimiser, and the merge."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from adapters.names import is_start
from trainer.recipe.parts import Section


class BranchConfig(Section):
    """One adapter being trained."""

    capabilities: tuple[str, ...] = Field(min_length=1)
    """The capabilities that it trains on; several make it a mixed branch."""
    init: str = "base"
    """The start: `base` (B = 0), or a fork of a revision in the store, such as `text-expert@120`."""

    @field_validator("init")
    @classmethod
    def _is_a_start(cls, init: str) -> str:
        if not is_start(init):
            raise ValueError(f'{init!r} is no start; take "base", or a fork as BRANCH@REVISION ("text-expert@120")')
        return init


class MergeConfig(Section):
    """The merge of the branches into one model at the end."""

    method: Literal["none", "mean", "ties", "svd"] = "mean"
    """The way of merging. mean: the exact mean of the weight deltas. ties: their largest entries, where signs agree.
    svd: the mean, back at the rank. none: branches only."""
    weights: dict[str, float] = Field(default={})
    """The weights of the branches; empty = equal."""
    scale: float = Field(default=1.0, gt=0)
    """The factor of the merged delta. 1 is the plain mean; more makes up for what averaging takes away."""


class LossConfig(Section):
    """The clipped objective, the same for rewards and for teachers."""

    normalise: Literal["sequence", "token"] = "sequence"
    """The mean of a term. sequence: over tokens, then over sequences. token: over all tokens alike (DAPO), so that
    long completions weigh more."""
    part_weights: Literal["equal", "rollouts"] = Field(default="equal", exclude_if=lambda value: value == "equal")
    """The weight of a step's parts, native and of each teacher. equal: each is a mean of its own and they add up, as in
    the paper. rollouts: as its share of the largest part's completions, so that a completion weighs the same in all."""
    std: bool = True
    """The division of advantages by the group's standard deviation, as in GRPO; false is Dr. GRPO."""
    eps_low: float = Field(default=0.2, gt=0, lt=1)
    """The clip below: the ratio counts as 1 - this at least."""
    eps_high: float = Field(default=0.28, gt=0)
    """The clip above: the ratio counts as 1 + this at most. Wider than below (DAPO), so that rare tokens can grow."""
    updates_per_batch: int = Field(default=1, ge=1)
    """The optimiser updates on one batch. With 1 the ratio is 1 and the clip does nothing; with more, later ones are
    off-policy."""
    importance_weight: bool = True
    """The weight of tokens by trainer / engine probability, for where the two differ; false = every token 1."""
    importance_cap: float = Field(default=2.0, ge=1)
    """The most that such a weight can be. A larger one corrects more and is noisier."""
    delta_clamp: float = Field(default=10.0, gt=0)
    """The most that one token's teacher signal can be, either way, so that none outweighs the batch."""
    teacher_signal: Literal["sampled", "top-k"] = "sampled"
    """The signal of a teacher: the sampled token's log-ratio, or the reverse KL over the teacher's likeliest tokens.
    Both have the same mean; the first has more noise."""
    teacher_top_k: int = Field(default=10, ge=1)
    """The number of likeliest tokens for `top-k`; what they leave over is one bin more."""


class RolloutConfig(Section):
    """The samples of a branch in one step."""

    prompts: int = Field(default=32, ge=1)
    """The prompts in a step. More make its gradient less noisy and the step longer."""
    group_size: int = 8
    """The completions of each prompt, which are compared with each other; 2 at least."""
    temperature: float = Field(default=1.0, gt=0, le=2)
    """The temperature of sampling. Log-probabilities are those at 1: with another value the samples are not the
    policy's own."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """The probability that sampled tokens are taken from. Below 1 the samples are not the policy's own either."""
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """The most tokens of a prompt, those of images and videos included. A longer one is dropped at load and counted,
    never cut."""
    max_completion_tokens: int = Field(default=2048, ge=1)
    """The most tokens of a completion. One that reaches it is truncated and keeps its reward."""
    opd_prompts: int | None = Field(default=None, ge=1)
    """The prompts for each teacher in an OPD step; null = `prompts`."""
    opd_group_size: int | None = Field(default=None, ge=1)
    """The completions of each of those; null = `group_size`. Fewer will do: distillation compares nothing in a
    group."""

    @field_validator("group_size")
    @classmethod
    def _has_a_baseline(cls, size: int) -> int:
        if size < 2:
            raise ValueError(f"a group of {size} has no baseline, every advantage would be 0; take at least 2")
        return size

    @property
    def max_model_len(self) -> int:
        """The context of the engine."""
        # One more than a sequence can have: the engine refuses to score one as long as its context.
        return self.max_prompt_tokens + self.max_completion_tokens + 1

    @property
    def opd_batch(self) -> tuple[int, int]:
        """Prompts and completions of each, for one teacher."""
        return self.opd_prompts or self.prompts, self.opd_group_size or self.group_size


class OptimiserConfig(Section):
    """AdamW, one for each branch, on float32 masters."""

    lr: float = Field(default=1e-5, gt=0)
    """The learning rate. 1e-5 is for LoRA; all weights want about a tenth."""
    weight_decay: float = Field(default=0.01, ge=0)
    """The pull of A and B to 0, apart from the gradient; 0 = none."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """The decay of the two moments, as AdamW has it; smaller ones forget sooner."""
    grad_norm: float = Field(default=1.0, gt=0)
    """The norm that larger gradients are scaled down to."""
    warmup_steps: int = Field(default=0, ge=0)
    """The steps over which lr rises from 0; afterwards it is fixed."""
    on_fork: Literal["fresh", "keep", "warmup"] = Field(default="fresh", exclude_if=lambda value: value == "fresh")
    """The moments of a branch that starts at another's revision. fresh: none, so that its first steps are as large as
    Adam's first ones are. keep: those of its origin, so that it goes on as its origin would. warmup: none, and lr rises
    from 0 over ten steps."""


class BudgetConfig(Section):
    """The speed and memory of a run. Nothing here changes its result."""

    tokens_per_micro_batch: int = Field(default=16_384, ge=64)
    """The packed tokens in one forward and backward pass; it holds one sequence at least. Fewer take less memory."""
    gradient_checkpointing: bool = True
    """The choice to keep only the inputs of layers for the backward pass and compute the rest again: less memory, a
    third slower."""
    prefetch: int = Field(default=1, ge=0, le=8)
    """The branches whose next rollouts already run while one updates; 0 = one thing at a time. Several fill an engine
    that small batches leave idle."""
    keep_last: int = Field(default=4, ge=2)
    """The revisions of a branch that stay in the store, beside heads, phase ends and those that the plan still
    names."""
    tokens_per_s: float = Field(default=1000.0, gt=0, exclude_if=lambda rate: rate == 1000)
    """The tokens that the engine samples in a second at least, of all sequences together. What a request may take, and
    how long one waits, follows from it."""
    step_hours: float = Field(default=24.0, gt=0, exclude_if=lambda hours: hours == 24)
    """The longest that the rollouts and scores of a step may take. A plan with a longer step is refused; a step that
    takes longer has failed."""


class WorkerConfig(Section):
    """The processes of a worker. Nothing here changes what a run computes."""

    shard: bool = False
    """The frozen base in parts: each process of a `torchrun` holds its share of every layer, and gathers a layer while
    it computes with it. For bases of 32 B and more, or long packs on small cards; it needs two processes at least."""


class RolloutsConfig(Section):
    """The records of what each step learnt from: for people, and for a worker's `--replay`."""

    keep: Literal["all", "last"] | Annotated[int, Field(ge=1)] | None = None
    """The steps of each branch whose records stay: `all`, the `last`, or so many. null = as many as take at most 20 GB
    in the whole run, the last in any case."""


class TrackingConfig(Section):
    """Where metrics go beside the run's own JSONL files."""

    to: tuple[Literal["tensorboard", "mlflow", "wandb", "trackio"], ...] = ()
    """The trackers that get them; each must be installed. Empty = the files only."""
    project: str = "coevo"
    """The project under which trackers file the run."""
    completions: int = Field(default=10, ge=0, exclude_if=lambda steps: steps == 10)
    """The steps of a branch from one table of completions to the next, with rewards and advantages; the first step has
    one too. 0 = none."""
