"""A comparison to read: `report.html`, one file that needs no other, and the same tables as Markdown for a document.

Left out: the numbers (`results`) and the pictures (`pictures`).
"""

import base64
import html
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.compare.dynamics import correlation
from trainer.compare.pictures import pictures
from trainer.compare.results import Results
from trainer.compare.standings import MEAN, Table
from trainer.plan.cost import Cost
from trainer.reporting.percent import percent

COSTS = tuple(Cost.__dataclass_fields__)
_MERGES = "merges"
_PILOT = "pilot: what a fresh student takes from one checkpoint of an expert"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } caption { text-align: left; font-weight: 600; padding: .4em 0 }
td, th { padding: .2em .7em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
td:first-child, th:first-child { text-align: left } small { color: #777 } img { max-width: 100% }
.holds { color: #176b2c } .fails { color: #a3201d } .undecided { color: #777 }
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
    for table in results.tables:
        for way in results.standings.ways:
            yield from ["", *_grid_as_markdown(grid(results, table, way), f"{table.title}, {way}")]
        yield from ["", *_grid_as_markdown(claims(results, table), f"{table.title}: the claims")]
    if len(rows := merges(results)) > 1:
        yield from ["", *_grid_as_markdown(rows, _MERGES)]
    if results.students:
        yield from ["", *_grid_as_markdown(pilot(results), _PILOT), "", *correlations(results)]


# ---- tables ----


def grid(results: Results, table: Table, way: str) -> Grid:
    """A line for each result: accuracies in %, the gain over the base, and what it cost."""
    standings = results.standings
    rows: list[tuple[str, ...]] = [("", *table.exams, MEAN, "over the base", "seeds", *COSTS)]
    if any(exam in results.blind for exam in table.exams):
        levels = [percent(results.blind[exam]) if exam in results.blind else "" for exam in table.exams]
        rows.append(("best blind answer", *levels, *[""] * (3 + len(COSTS))))  # no mean, gain, seeds and costs
    base = next((line for line in table.lines if line.system == "base"), None)
    for line in table.lines:
        # Each exam alone, then all of them.
        means = [standings.accuracy(line, exams, way) for exams in (*zip(table.exams), table.exams)]
        gain = ""
        if base is not None and line != base:
            difference = standings.difference(line, base, table.exams, way)
            gain = percent(difference.mean, difference.half_width, sign="+")
        spent = results.spent.get((line.system, line.row))
        costs = [""] * len(COSTS) if spent is None else [f"{getattr(spent, name):,.0f}" for name in COSTS]
        accuracies = [percent(mean.mean, mean.half_width) for mean in means]
        rows.append((line.label, *accuracies, gain, f"{len(standings.seeds_of(line))}", *costs))
    return rows


def claims(results: Results, table: Table) -> Grid:
    ways = results.standings.ways
    rows = [("claim", *(word for way in ways for word in (f"difference, {way}", "")))]
    for verdicts in zip(*(results.verdicts[table.title][way] for way in ways), strict=True):
        claim = verdicts[0].claim  # the same in every way of answering
        exam = "" if claim.exam == MEAN else f" on {claim.exam}"
        source = "" if claim.is_papers else " (not in the paper)"
        cells: list[str] = []
        for verdict in verdicts:
            cells += [percent(verdict.difference.mean, verdict.difference.half_width, sign="+"), verdict.word]
        rows.append((f"{claim.ahead.label} > {claim.behind.label}{exam}{source}", *cells))
    return rows


def merges(results: Results) -> Grid:
    """How branches were merged: what each scale answered of the validation questions, and how far deltas agree."""
    rows: list[tuple[str, ...]] = [("merge", "seed", "scale", "validation by scale", "cosines of the deltas")]
    for seed, models in sorted(results.merges.items()):
        for system, model in models.items():
            tried = ", ".join(f"{scale}: {percent(accuracy)}" for scale, accuracy in model.tried.items())
            cosines = ", ".join("-" if cosine is None else f"{cosine:.2f}" for cosine in model.cosines.values())
            rows.append((system, str(seed), f"{model.scale:g}", tried, cosines))
    return rows


def pilot(results: Results) -> Grid:
    head = ("teacher", "seed", "steps of the teacher", "overlap with the base", "gain", "of the teacher's lead")
    rows = [
        (
            student.capability,
            f"{student.seed}",
            f"{student.age}",
            f"{student.overlap:.3f}",
            percent(student.gain, sign="+"),
            _share(student.absorbed),
        )
        for student in results.students
    ]
    return [head, *rows]


def correlations(results: Results) -> Iterator[str]:
    """Sentences about the pilot; none where there are too few students."""
    gains = [(student.overlap, student.gain) for student in results.students]
    shares = [(student.overlap, student.absorbed) for student in results.students if student.absorbed is not None]
    for name, points in (("gain", gains), ("share of the teacher's lead", shares)):
        r = correlation([x for x, _ in points], [y for _, y in points])
        if r is not None:
            yield f"Pearson's r of {name} and overlap: {r[0]:.2f} ({r[1]:.2f} to {r[2]:.2f})."


def means_by_seed(results: Results, table: Table) -> Grid:
    seeds = results.standings.seeds
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
        f"Of one seed they are those of the questions alone.</p>"
    )
    for table in results.tables:
        yield f"<h2>{html.escape(table.title.capitalize())}</h2>"
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
    if results.students:
        yield from _grid_as_html(pilot(results), _PILOT)
        yield from (f"<p>{line}</p>" for line in correlations(results))
    if results.absorbed:
        rows = [(absorbed.student, absorbed.capability, _share(absorbed.share)) for absorbed in results.absorbed]
        caption = "what students took of their teachers' lead"
        yield from _grid_as_html([("student", "capability", "share"), *rows], caption)
    yield "</html>"


def _grid_as_html(rows: Grid, caption: str) -> Iterator[str]:
    yield f"<table><caption>{html.escape(caption)}</caption>"
    for number, row in enumerate(rows):
        tag = "th" if number == 0 else "td"
        cells: list[str] = []
        for text in row:
            # The only cells with such a word are verdicts.
            colour = f" class={text}" if text in ("holds", "fails", "undecided") else ""
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
