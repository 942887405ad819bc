"""What a finished run ends with: its branches folded into one model, and every model examined beside the others.

    DIR/merged/            the merged checkpoint, with its card and how it was made
    DIR/merged-adapter/    the same as one adapter
    DIR/results.json       accuracy of the base, every branch and the merge, with intervals
    DIR/items.jsonl        every answer

The merge is examined as the adapter that it exactly is, stacked, by an engine that takes its rank; where there is none
(ties) or its rank is too large, as the folded checkpoint. What is there already is not made again.

Left out: what is shown of it (`scoreboard`, `picture`), and the branches themselves.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from adapters.base import locate
from adapters.merge import MergePlan, fold, make_merge_plan, write_adapter
from adapters.merge_inputs import MergeBase, open_base, open_revision
from adapters.merge_record import Record, write_card
from adapters.names import BASE, MERGED, Ref
from trainer.evaluation.exams import ExamAnswer, ExamResult, MeanResult, decoder, exam_results, exams, mean_results
from trainer.local.examiner import Examiner, stacked_rank
from trainer.local.processes import ProcessGroup
from trainer.plan.make import make_plan
from trainer.plan.steps import Plan
from trainer.recipe import Recipe
from trainer.reporting.tables import as_json

UNMERGED_SYSTEMS = frozenset({"base", "mopd", "pilot"})
"""Systems whose result is no merge of their branches."""
ADAPTER = "merged-adapter"


@dataclass(frozen=True, slots=True)
class Outcome:
    found: list[ExamResult]
    means: list[MeanResult]


def merge_of(recipe: Recipe, made: Plan, store: Path, base: MergeBase) -> MergePlan | None:
    """Of all branches at the end of their plan; None where there is nothing to merge."""
    settings = recipe.merge
    if settings.method == "none" or recipe.method.kind in UNMERGED_SYSTEMS or len(made.starts) < 2:
        return None
    branches = [open_revision(store, Ref(start.branch, made.head(start.branch)), base) for start in made.starts]
    return make_merge_plan(branches, settings.weights, method=settings.method, scale=settings.scale)


def finish(recipe: Recipe, out: Path, processes: ProcessGroup) -> Outcome:
    """Merges, examines, writes."""
    made = make_plan(recipe)
    folder = locate(recipe.base.name)
    base = open_base(folder, recipe.base.name)
    mix = merge_of(recipe, made, out / "store", base)
    if mix is not None:
        print(f"merging {', '.join(branch.source for branch in mix.branches)}", flush=True)
    record = merge(base, mix, out) if mix is not None else None
    asked = exams(recipe)
    models = [BASE, *(str(Ref(start.branch, made.head(start.branch))) for start in made.starts)]
    examiner = Examiner(recipe, out, processes, asked, decoder(recipe))
    if mix is None:
        items = examiner.examine(models)
    elif (rank := stacked_rank(out / ADAPTER)) is None:
        items = examiner.examine(models) + examiner.examine_checkpoint(out / MERGED)
    else:
        items = examiner.examine([*models, MERGED], rank=rank, extra={MERGED: out / ADAPTER})
    found = exam_results(items, asked)
    outcome = Outcome(found, mean_results(found))
    _write(out, recipe, outcome, items, record)
    return outcome


def merge(base: MergeBase, mix: MergePlan, out: Path) -> Record:
    """The checkpoint and, where there is one, the adapter: each whole or not there."""
    target, adapter = out / MERGED, out / ADAPTER
    if mix.method != "ties" and not adapter.exists():
        write_adapter(base, mix, adapter)
    if target.exists():
        return Record.model_validate_json((target / "merge.json").read_text())
    return fold(base, mix, target)


def scores_of(outcome: Outcome) -> dict[str, dict[str, float]]:
    """By model and exam, for a card: what the likeliest answer gets, else the mean of the sampled ones."""
    scores: dict[str, dict[str, float]] = {}
    for one in outcome.found:
        of_model = scores.setdefault(one.model, {})
        if one.way == "greedy" or one.exam not in of_model:
            of_model[one.exam] = one.accuracy.mean
    return scores


def _write(out: Path, recipe: Recipe, outcome: Outcome, items: Sequence[ExamAnswer], record: Record | None) -> None:
    """The table last: it says that all else is there."""
    if record is not None:
        write_card(out / MERGED, record, scores_of(outcome))
    (out / "items.jsonl").write_text("".join(json.dumps(asdict(item)) + "\n" for item in items))
    draft = out / ".results.json"
    draft.write_text(json.dumps(as_json(recipe, outcome.found, outcome.means), indent=1, allow_nan=False) + "\n")
    draft.replace(out / "results.json")
