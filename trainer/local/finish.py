"""What a finished run ends with: its branches folded into one model, and every model examined beside the others.

    DIR/merged/            the merged checkpoint, with its card and how it was made
    DIR/merged-adapter/    the same as one adapter
    DIR/results.json       accuracy of the base, every branch and the merge, with intervals
    DIR/items.jsonl        every answer

The merge is examined as the adapter that it exactly is, stacked, by an engine that takes its rank; where there is none
(ties) or its rank is too large, as the folded checkpoint. What is there already is not made again.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from adapters.base import locate
from adapters.merge import MergePlan, fold, make_merge_plan, write_adapter
from adapters.merge_inputs import MergeBase, open_base, open_revision
from adapters.merge_record import Record, write_card
from adapters.names import BASE, MERGED, Ref
from trainer.evaluation.exams import ExamResult, MeanResult, as_lines, decoder, exam_results, exams, mean_results
from trainer.local.examiner import ADAPTER, Examiner, stacked_rank
from trainer.local.processes import ProcessGroup
from trainer.plan.make import make_plan
from trainer.plan.steps import Plan
from trainer.recipe import Recipe
from trainer.reporting.progress import Progress
from trainer.reporting.tables import as_json

UNMERGED_SYSTEMS = frozenset({"base", "mopd", "pilot", "ages"})
"""Systems whose result is no merge of their branches."""


@dataclass(frozen=True, slots=True)
class Outcome:
    results: list[ExamResult]
    means: list[MeanResult]


def plan_merge(recipe: Recipe, plan: Plan, store: Path, base: MergeBase) -> MergePlan | None:
    """The merge of all branches as they end; None where there is nothing to merge."""
    settings = recipe.merge
    if settings.method == "none" or recipe.method.kind in UNMERGED_SYSTEMS or len(plan.starts) < 2:
        return None
    branches = [open_revision(store, Ref(start.branch, plan.head(start.branch)), base) for start in plan.starts]
    return make_merge_plan(branches, settings.weights, method=settings.method, scale=settings.scale)


def finish(recipe: Recipe, out: Path, processes: ProcessGroup) -> Outcome:
    """Merges, examines, writes."""
    plan = make_plan(recipe)
    base = open_base(locate(recipe.base.name), recipe.base.name)
    merge_plan = plan_merge(recipe, plan, out / "store", base)
    record = None
    if merge_plan is not None:
        print(f"merging {', '.join(branch.source for branch in merge_plan.branches)}", flush=True)
        record = merge(base, merge_plan, out)

    models = [BASE, *(str(Ref(start.branch, plan.head(start.branch))) for start in plan.starts)]
    all_exams = exams(recipe)
    examiner = Examiner(recipe, out, processes, all_exams, decoder(recipe))
    if merge_plan is None:
        items = examiner.examine(models)
    elif (rank := stacked_rank(out / ADAPTER)) is None:
        # A second service, for the checkpoint is another base: one engine has one.
        items = examiner.examine(models) + examiner.examine_checkpoint(out / MERGED)
    else:
        items = examiner.examine([*models, MERGED], rank=rank, extra={MERGED: out / ADAPTER})

    results = exam_results(items, all_exams)
    outcome = Outcome(results, mean_results(results))
    if record is not None:
        write_card(out / MERGED, record, card_scores(results))
    (out / "items.jsonl").write_text(as_lines(items))
    # The table last, and whole by a rename: it says that all else is there.
    draft = out / ".results.json"
    draft.write_text(json.dumps(as_json(recipe, results, outcome.means), indent=1, allow_nan=False) + "\n")
    draft.replace(out / "results.json")
    return outcome


def merge(base: MergeBase, merge_plan: MergePlan, out: Path) -> Record:
    """The checkpoint and, where there is one, the adapter: each whole or not there."""
    target, adapter = out / MERGED, out / ADAPTER
    # Adapter first: a run that is broken off between the two has the smaller one, and folds when it goes on.
    if merge_plan.method != "ties" and not adapter.exists():
        write_adapter(base, merge_plan, adapter)
    if target.exists():
        return Record.model_validate_json((target / "merge.json").read_text())
    with Progress("merging", "tensors") as progress:
        return fold(base, merge_plan, target, progress.show)


def card_scores(results: list[ExamResult]) -> dict[str, dict[str, float]]:
    """Scores by model and exam, for a card: what the likeliest answer gets, else the mean of the sampled ones."""
    scores: dict[str, dict[str, float]] = {}
    for result in results:
        of_model = scores.setdefault(result.model, {})
        # Ways come in any order, so the likeliest answer overwrites and the others only fill a gap.
        if result.way == "greedy" or result.exam not in of_model:
            of_model[result.exam] = result.accuracy.mean
    return scores
