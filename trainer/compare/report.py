"""A comparison to read: `report.html`, one file that needs no other, and the same tables as Markdown for a document.

Left out: the numbers (`results`) and the pictures (`pictures`).
"""

import base64
import html
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from trainer.compare.pictures import STUDENTS, pictures
from trainer.compare.results import GainShare, Results
from trainer.compare.standings import MEAN, Table
from trainer.compare.students import Measure, Outcome, Student, correlation
from trainer.plan.cost import Cost
from trainer.reporting.percent import percent

COSTS = tuple(Cost.__dataclass_fields__)
_MERGES = "merges and scales, chosen on validation questions"
_GAIN_SHARES = "what rivals have of the experts' gain"
_PHASES = "how alike branches are, by phase"
_PRIMARY = "several answers a question at a temperature below 1, evaluation.answers.primary"
_NOTHING = 0.05
"""A share of the gain that is as good as none: by its noise over fifteen seeds, of which it is a quotient."""
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } caption { text-align: left; font-weight: 600; padding: .4em 0 }
td, th { padding: .2em .7em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
td:first-child, th:first-child { text-align: left } small { color: #777 } img { max-width: 100% }
.holds { color: #176b2c } .fails { color: #a3201d } .undecided, .one { color: #777 }
"""

Grid = Sequence[Sequence[str]]
"""Rows of cells; the first has the heads."""


def write_report(results: Results, path: Path) -> Path:
    draft = path.with_name(f".{path.name}")
    draft.write_text("\n".join(_as_html(results)) + "\n")
    draft.replace(path)  # whoever has the old page open can load it at any moment
    return path


def markdown(results: Results) -> Iterator[str]:
    """The tables and verdicts, for a document."""
    yield from ["", *notes(results)] if notes(results) else []
    if results.gain_shares:
        yield from ["", *_grid_as_markdown(gain_shares(results), _GAIN_SHARES), "", prediction(results)]
    for table in results.tables:
        name = f"{table.title}, {named_seeds(table.seeds)}"
        for way in results.standings.ways:
            yield from ["", *_grid_as_markdown(grid(results, table, way), f"{name}, {way}")]
        yield from ["", *_grid_as_markdown(claims(results, table), f"{name}: the claims")]
    if results.phase_changes:
        yield from ["", *_grid_as_markdown(phases(results), _PHASES)]
    if len(rows := merges(results)) > 1:
        yield from ["", *_grid_as_markdown(rows, _MERGES)]
    for system, students in results.students.items():
        title = STUDENTS[system][0]
        yield from ["", *_grid_as_markdown(one_teacher(students), title), "", *correlations(students)]


# ---- tables ----


def grid(results: Results, table: Table, way: str) -> Grid:
    """A line for each result: accuracies in %, the gain over the base, and what it cost."""
    standings = results.standings
    rows: list[tuple[str, ...]] = [("", *table.exams, MEAN, "over the base", *COSTS)]
    if any(exam in results.blind for exam in table.exams):
        levels = [percent(results.blind[exam]) if exam in results.blind else "" for exam in table.exams]
        rows.append(("best blind answer", *levels, *[""] * (2 + len(COSTS))))  # no mean, gain and costs
    base = next((line for line in table.lines if line.system == "base"), None)
    for line in table.lines:
        # Each exam alone, then all of them.
        means = [standings.accuracy(line, exams, way, table.seeds) for exams in (*zip(table.exams), table.exams)]
        gain = ""
        if base is not None and line != base:
            difference = standings.difference(line, base, table.exams, way, table.seeds)
            gain = percent(difference.mean, difference.half_width, sign="+")
        spent = results.measured.spent.get((line.system, line.row))
        costs = [""] * len(COSTS) if spent is None else [f"{getattr(spent, name):,.0f}" for name in COSTS]
        accuracies = [percent(mean.mean, mean.half_width) for mean in means]
        rows.append((line.label, *accuracies, gain, *costs))
    return rows


def claims(results: Results, table: Table) -> Grid:
    ways = results.standings.ways
    rows = [("claim", *(word for way in ways for word in (f"difference, {way}", "p", "")))]
    # The paper's first: they are what the comparison is for.
    for claim in sorted(table.claims, key=lambda claim: not claim.is_papers):
        exam = "" if claim.exam == MEAN else f" on {claim.exam}"
        source = "" if claim.is_papers else " (not in the paper)"
        cells: list[str] = []
        for verdict in (verdict for verdict in results.verdicts[table] if verdict.claim == claim):
            p = "" if verdict.p is None else "< 0.001" if verdict.p < 0.001 else f"{verdict.p:.3f}"
            cells += [percent(verdict.difference.mean, verdict.difference.half_width, sign="+"), p, verdict.word]
        rows.append((f"{claim.ahead.label} > {claim.behind.label}{exam}{source}", *cells))
    return rows


def gain_shares(results: Results) -> Grid:
    """What mixed RLVR keeps of the experts' gain, 1 - Phi, and what frozen teachers' students take, eta."""
    rows = [("of the experts' gain", "way", "all it learns", "capability by capability")]
    groups: dict[tuple[str, str], list[GainShare]] = {}
    for share in results.gain_shares:
        groups.setdefault((share.system, share.way), []).append(share)
    for (_, way), shares in groups.items():
        *alone, whole = shares
        by_capability = ", ".join(f"{share.exams[0]} {_share(share.share)}" for share in alone)
        rows.append((f"{whole.label} ({', '.join(whole.exams)})", way, _share(whole.share), by_capability))
    return rows


def prediction(results: Results) -> str:
    """What the paper's bounds say of all branches: mixed RLVR loses Phi, a student of frozen teachers 1 - eta."""
    sentences: list[str] = []
    for way in results.standings.ways:
        whole = {share.system: share for share in results.gain_shares if share.way == way}  # the last: of all it learns
        words: list[str] = []
        for name, symbol in (("mixed3", "Phi"), ("mopd", "1 - eta")):
            system = f"{name}-tokens" if f"{name}-tokens" in whole else name  # equal budgets come first
            if system in whole and (share_kept := whole[system].share) is not None:
                lost, label = max(0.0, 1 - share_kept), whole[system].label
                word = "a tie" if lost < _NOTHING else "a lead of CoPD"
                words.append(
                    f"{label} loses {percent(lost)} % of the experts' gain ({symbol}), so theory predicts {word}"
                )
        if words:
            sentences.append(f"{way.capitalize()}, {'; '.join(words)}.")
    return " ".join(sentences)


def phases(results: Results) -> Grid:
    rows = [("change in one phase", "of", "mean", "± of 95 %")]
    for change in results.phase_changes:
        half = change.change.half_width
        words = (f"{change.change.mean:+.4f}", "" if half is None else f"{half:.4f}")
        rows.append((f"{change.system}, {change.phase}", change.quantity, *words))
    return rows


def notes(results: Results) -> list[str]:
    """Sentences on what is not there, or was chosen, before the tables."""
    sentences: list[str] = []
    if lacking := results.standings.lacking:
        sentences.append(
            f"The primary metric ({_PRIMARY}) has no answers of {named_seeds(lacking)}: systems are told apart by "
            "the other ways of answering, which do not agree."
        )
    if rates := results.rates:
        words: list[str] = []
        for system, rate in rates.chosen.items():
            tried = ", ".join(f"{name}: {percent(accuracy)}" for name, accuracy in rates.tried[system].items())
            words.append(f"{system} {rate:g} ({tried})")
        sentences.append(f"Learning rates, by validation questions of a seed that is not reported: {'; '.join(words)}.")
    return sentences


def named_seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"


def merges(results: Results) -> Grid:
    """How results were made: what each scale answered of the validation questions, and how far merged deltas agree."""
    rows: list[tuple[str, ...]] = [("system", "seed", "scale", "validation by scale", "cosines of the deltas")]
    for seed, models in sorted(results.merges.items()):
        for system, model in models.items():
            tried = ", ".join(f"{scale}: {percent(accuracy)}" for scale, accuracy in model.tried.items())
            cosines = ", ".join("-" if cosine is None else f"{cosine:.2f}" for cosine in model.cosines.values())
            rows.append((system, str(seed), f"{model.scale:g}", tried, cosines))
    return rows


def one_teacher(students: Sequence[Student]) -> Grid:
    """Students of one system, and what each took from its one teacher."""
    setting = STUDENTS[students[0].system][1]
    head = ("teacher", "seed", setting, "overlap", "shared", "KL", "gain", "of the teacher's lead")
    rows = [
        (
            student.capability,
            f"{student.seed}",
            f"{student.setting:g}",
            f"{student.overlap:.3f}",
            "" if student.shared is None else f"{student.shared:.4f}",
            "" if student.kl is None else f"{student.kl:.4f}",
            percent(student.gain, sign="+"),
            _share(student.absorbed),
        )
        for student in students
    ]
    return [head, *rows]


def correlations(students: Sequence[Student]) -> Iterator[str]:
    """Sentences about students of one system; none where there are too few."""
    outcomes: dict[Outcome, str] = {"gain": "gain", "absorbed": "share of the teacher's lead"}
    measures: dict[Measure, str] = {"overlap": "overlap", "shared": "shared probability"}
    for (outcome, name), (measure, label) in product(outcomes.items(), measures.items()):
        if r := correlation(students, outcome, measure):
            ends = "few runs: no interval" if r.interval is None else "{:.2f} to {:.2f}".format(*r.interval)
            yield f"Pearson's r of {name} and {label}: {r.r:.2f} ({ends})."


def means_by_seed(results: Results, table: Table) -> Grid:
    seeds = table.seeds
    rows = [("", *(f"seed {seed}" for seed in seeds))]
    for line in table.lines:
        means = results.standings.by_seed(line, table.exams, results.way)
        rows.append((line.label, *(percent(means[seed]) if seed in means else "" for seed in seeds)))
    return rows


def _share(value: float | None) -> str:
    return "" if value is None else f"{percent(value, digits=0)} %"


# ---- as HTML and Markdown ----


def _as_html(results: Results) -> Iterator[str]:
    seeds = results.standings.seeds
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(results.name)}</title>"
    yield f"<style>{_STYLE}</style><h1>{html.escape(results.name)}</h1>"
    yield (
        f"<p>{len(seeds)} seed{'s' * (len(seeds) != 1)} ({', '.join(map(str, seeds))}), {results.steps} steps an "
        f"expert. Accuracy in %, means with 95 % intervals, paired by seed and question. "
        f"p is corrected by Holm, for the paper's claims as one family. Of one seed, intervals are those of the "
        f"questions alone, and nothing is decided.</p>"
    )
    yield from (f"<p>{html.escape(note)}</p>" for note in notes(results))
    if results.gain_shares:
        yield from _grid_as_html(gain_shares(results), _GAIN_SHARES)
        yield f"<p>{html.escape(prediction(results))}</p>"
    for table in results.tables:
        yield f"<h2>{html.escape(table.title.capitalize())}, {named_seeds(table.seeds)}</h2>"
        for way in results.standings.ways:
            yield from _grid_as_html(grid(results, table, way), way)
        yield from _grid_as_html(claims(results, table), "what the paper says, and whether it shows here")
        yield from _grid_as_html(means_by_seed(results, table), f"mean by seed, {results.way}")
    if len(rows := merges(results)) > 1:
        yield from _grid_as_html(rows, _MERGES)
    for title, picture in pictures(results).items():
        # Within the page, so that it is one file that can be sent to somebody.
        source = base64.b64encode(picture).decode()
        yield f'<h2>{html.escape(title)}</h2><img alt="{html.escape(title)}" src="data:image/png;base64,{source}">'
    for system, students in results.students.items():
        yield from _grid_as_html(one_teacher(students), STUDENTS[system][0])
        yield from (f"<p>{line}</p>" for line in correlations(students))
    if results.phase_changes:
        yield from _grid_as_html(phases(results), _PHASES)
    yield "</html>"


def _grid_as_html(rows: Grid, caption: str) -> Iterator[str]:
    yield f"<table><caption>{html.escape(caption)}</caption>"
    for number, row in enumerate(rows):
        tag = "th" if number == 0 else "td"
        cells: list[str] = []
        for text in row:
            # The only cells with such a word are verdicts.
            colour = f' class="{text}"' if text in ("holds", "fails", "undecided", "one seed") else ""
            cells.append(f"<{tag}{colour}>{html.escape(text)}</{tag}>")
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</table>"


def _grid_as_markdown(rows: Grid, caption: str) -> Iterator[str]:
    yield f"**{caption}**"
    yield ""
    for number, row in enumerate(rows):
        yield f"| {' | '.join(row)} |"
        if number == 0:
            yield f"|{'---|' * len(row)}"
