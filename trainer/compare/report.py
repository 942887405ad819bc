"""A comparison to read: `report.html`, one file that needs no other, and the same tables as lines for a terminal.

Left out: the numbers (`results`) and the pictures (`pictures`).
"""

import base64
import html
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.compare.costs import Spent
from trainer.compare.dynamics import correlation
from trainer.compare.pictures import pictures
from trainer.compare.results import Results
from trainer.compare.standings import MEAN, Table, Verdict
from trainer.evaluation.intervals import Interval

COSTS = tuple(Spent.__dataclass_fields__)
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


def write_report(results: Results, path: Path) -> Path:
    draft = path.with_name(f".{path.name}")
    draft.write_text("\n".join(_page(results)) + "\n")
    draft.replace(path)
    return path


def markdown(results: Results) -> Iterator[str]:
    """The tables and verdicts, for a document."""
    for table in results.tables:
        for way in results.found.ways:
            yield from ["", *_as_markdown(grid(results, table, way), f"{table.title}, {way}")]
        yield from ["", *_as_markdown(claims(results, table), f"{table.title}: the claims")]
    if len(made := merges(results)) > 1:
        yield from ["", *_as_markdown(made, _MERGES)]
    if results.students:
        yield from ["", *_as_markdown(pilot(results), _PILOT), "", *correlations(results)]


# ---- cells ----


def grid(results: Results, table: Table, way: str) -> Grid:
    """A line for each result: accuracies in %, the gain over the base, and what it cost."""
    head = ("", *table.exams, MEAN, "over the base", "seeds", *COSTS)
    base = next((line for line in table.lines if line.system == "base"), None)
    rows: list[tuple[str, ...]] = [head]
    if any(exam in results.blind for exam in table.exams):
        levels = [f"{100 * results.blind[exam]:.1f}" if exam in results.blind else "" for exam in table.exams]
        rows.append(("best blind answer", *levels, *[""] * (3 + len(COSTS))))
    for line in table.lines:
        gain = "" if base in (None, line) else _points(results.found.difference(line, base, table.exams, way))
        cells = [_percent(results.found.accuracy(line, exams, way)) for exams in (*zip(table.exams), table.exams)]
        seeds = f"{len(results.found.seeds_of(line))}"
        rows.append((line.label, *cells, gain, seeds, *_costs(results.spent.get((line.system, line.row)))))
    return rows


def claims(results: Results, table: Table) -> Grid:
    ways = results.found.ways
    rows = [("claim", *(word for way in ways for word in (f"difference, {way}", "")))]
    for several in zip(*(results.verdicts[table.title][way] for way in ways), strict=True):
        cells = [cell for one in several for cell in (_points(one.difference), one.word)]
        rows.append((_claim(several[0]), *cells))
    return rows


def merges(results: Results) -> Grid:
    """How branches were made one: what each scale answered of the validation questions, and how far deltas agree."""
    rows: list[tuple[str, ...]] = [("merge", "seed", "scale", "validation by scale", "cosines of the deltas")]
    for seed, systems in sorted(results.merges.items()):
        for system, one in systems.items():
            tried = ", ".join(f"{scale}: {100 * value:.1f}" for scale, value in one.tried.items())
            cosines = ", ".join("-" if value is None else f"{value:.2f}" for value in one.cosines.values())
            rows.append((system, str(seed), f"{one.scale:g}", tried, cosines))
    return rows


def pilot(results: Results) -> Grid:
    head = ("teacher", "seed", "steps of the teacher", "overlap with the base", "gain", "of the teacher's lead")
    rows = [
        (
            one.capability,
            f"{one.seed}",
            f"{one.age}",
            f"{one.overlap:.3f}",
            f"{100 * one.gain:+.1f}",
            _share(one.absorbed),
        )
        for one in results.students
    ]
    return [head, *rows]


def correlations(results: Results) -> Iterator[str]:
    """Of the pilot; nothing where there are too few students."""
    kept = [one for one in results.students if one.absorbed is not None]
    for name, points in (
        ("gain", [(one.overlap, one.gain) for one in results.students]),
        ("share of the teacher's lead", [(one.overlap, one.absorbed or 0.0) for one in kept]),
    ):
        r = correlation([x for x, _ in points], [y for _, y in points])
        if r is not None:
            yield f"Pearson's r of {name} and overlap: {r[0]:.2f} ({r[1]:.2f} to {r[2]:.2f})."


def _claim(one: Verdict) -> str:
    claim = one.claim
    where = "" if claim.exam == MEAN else f" on {claim.exam}"
    source = "" if claim.is_papers else " (not in the paper)"
    return f"{claim.ahead.label} > {claim.behind.label}{where}{source}"


def _percent(one: Interval) -> str:
    half = one.half_width
    return f"{100 * one.mean:.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def _points(one: Interval) -> str:
    half = one.half_width
    return f"{100 * one.mean:+.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def _costs(spent: Spent | None) -> list[str]:
    return [""] * len(COSTS) if spent is None else [f"{getattr(spent, name):,.0f}" for name in COSTS]


# ---- the page ----


def _page(results: Results) -> Iterator[str]:
    found, seeds = results.found, results.found.seeds
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(results.name)}</title>"
    yield f"<style>{_STYLE}</style><h1>{html.escape(results.name)}</h1>"
    yield (
        f"<p>{len(seeds)} seed{'s' * (len(seeds) != 1)} ({', '.join(map(str, seeds))}), {results.steps} steps an "
        f"expert. Accuracy in %, means with 95 % intervals, paired by seed and question. "
        f"Of one seed they are those of the questions alone.</p>"
    )
    for table in results.tables:
        yield f"<h2>{html.escape(table.title.capitalize())}</h2>"
        for way in found.ways:
            yield from _as_html(grid(results, table, way), way)
        yield from _as_html(claims(results, table), "what the paper says, and whether it shows here")
        yield from _as_html(_by_seed(results, table), f"mean by seed, {results.way}")
    if len(made := merges(results)) > 1:
        yield from _as_html(made, _MERGES)
    for title, data in pictures(results).items():
        source = base64.b64encode(data).decode()
        yield f'<h2>{html.escape(title)}</h2><img alt="{html.escape(title)}" src="data:image/png;base64,{source}">'
    if results.students:
        yield from _as_html(pilot(results), _PILOT)
        yield from (f"<p>{line}</p>" for line in correlations(results))
    if results.absorbed:
        rows = [(one.student, one.capability, _share(one.share)) for one in results.absorbed]
        yield from _as_html([("student", "capability", "share"), *rows], "what students took of their teachers' lead")
    yield "</html>"


def _by_seed(results: Results, table: Table) -> Grid:
    seeds = results.found.seeds
    rows = [("", *(f"seed {seed}" for seed in seeds))]
    for line in table.lines:
        own = results.found.by_seed(line, table.exams, results.way)
        rows.append((line.label, *(f"{100 * own[seed]:.1f}" if seed in own else "" for seed in seeds)))
    return rows


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _as_html(rows: Grid, caption: str) -> Iterator[str]:
    yield f"<table><caption>{html.escape(caption)}</caption>"
    for number, row in enumerate(rows):
        tag = "th" if number == 0 else "td"
        yield "<tr>" + "".join(_cell(tag, text) for text in row) + "</tr>"
    yield "</table>"


def _cell(tag: str, text: str) -> str:
    kind = f" class={text}" if text in ("holds", "fails", "undecided") else ""
    return f"<{tag}{kind}>{html.escape(text)}</{tag}>"


def _as_markdown(rows: Grid, caption: str) -> Iterator[str]:
    yield f"**{caption}**"
    yield ""
    for number, row in enumerate(rows):
        yield f"| {' | '.join(row)} |"
        if number == 0:
            yield f"|{'---|' * len(row)}"
