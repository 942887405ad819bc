"""Measures of how the sources read, beside their limits.

    python -m tests.readability            # prints the table
    python -m tests.readability --check    # refuses placeholder names in the sources, and counts those of the tests

Every tool counts sizes. These measures also count what makes code hard to follow: names that say nothing, helpers with
one caller, and the calls between a worker's `main` and `.backward()`.
"""

import argparse
import ast
import io
import math
import re
import statistics
import sys
import tokenize
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("adapters", "service", "trainer", "clients")
METHOD = ("trainer/loop.py", "trainer/rollout/", "trainer/update/update.py", "trainer/orchestration/scheduler.py")
"""The files that tell the method. They want twice the comments: a reader asks why most often there."""
STEP = ("worker.py", "loop.py", "orchestration/scheduler.py", "update/learner.py", "update/update.py")
"""Where a step passes through, below trainer/. The walk stays within them: it goes by names alone, which stand for one
function here and for many in the whole tree."""
PLACEHOLDERS = re.compile(
    r"_*(ones?|found|owns?|made|asked|told|others?|mine|ours|theirs|several|what|things?|place|kept|got)"
)
"""Words that stand for any noun. A leading underscore does not make them say more."""
DIRECTIVE = re.compile(r"#\s*(fmt:|type:|noqa|pyright:|-{2,})|#!")
"""Comments for a tool, and rules between paragraphs, which explain nothing."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
Trees = dict[str, ast.Module]


def parsed(*folders: str) -> Trees:
    """Modules in these folders, by their path from the root."""
    paths = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}


def bindings(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that a module binds, with its line: variables, arguments, fields, functions, classes."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, node.lineno
            case _:
                pass


def placeholders(trees: Trees) -> list[str]:
    """The bindings that say nothing, as `file:line: name`."""
    names = [(path, line, name) for path, tree in trees.items() for name, line in bindings(tree)]
    return [f"{path}:{line}: {name}" for path, line, name in sorted(names) if PLACEHOLDERS.fullmatch(name)]


def functions(trees: Trees) -> list[Function]:
    return [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, Function)]


def used_names(tree: ast.AST) -> Iterator[str]:
    """Names that are read, attributes among them, once for each use."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name):
                yield name
            case _:
                pass


def single_caller_helpers(trees: Trees) -> list[str]:
    """Private functions whose name their own module uses once."""
    helpers: list[str] = []
    for path, tree in trees.items():
        uses = Counter(used_names(tree))
        names = [function.name for function in functions({path: tree})]
        helpers += [f"{path}: {name}" for name in names if re.match("_(?!_)", name) and uses[name] == 1]
    return helpers


def of_docstrings(trees: Trees) -> list[str]:
    """Docstrings of modules, classes, functions, fields and constants that do not begin with their noun."""
    return [
        f"{path}: {text}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(text := node.value.value, str) and text.startswith(("Of ", "By "))
    ]


def comment_lines(path: str) -> int:
    """Comments for a reader, those behind code among them."""
    # Only the tokenizer tells a comment from a "#" within a string.
    tokens = tokenize.generate_tokens(io.StringIO((ROOT / path).read_text()).readline)
    return sum(token.type == tokenize.COMMENT and not DIRECTIVE.match(token.string) for token in tokens)


def chain(calls: dict[str, set[str]], first: str, last: str) -> list[str]:
    """The shortest way from one name to another along what functions of these names use; none is empty."""
    queue, seen = deque([[first]]), {first}
    while queue:
        names = queue.popleft()
        if names[-1] == last:
            return names
        # Sorted: which of two shortest chains is printed must not change from run to run.
        for name in sorted(calls.get(names[-1], set()) - seen):
            seen.add(name)
            queue.append([*names, name])
    return []


def called_names(function: Function, modules: set[str]) -> set[str]:
    """Names that a function may call: neither its own variables, nor what a module such as asyncio has."""
    bound = modules | {name for name, _ in bindings(function)}
    names: set[str] = set()
    for node in ast.walk(function):
        match node:
            case ast.Attribute(value=ast.Name(id=module)) if module in modules:
                pass
            case ast.Attribute(attr=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Load()) if name not in bound:
                names.add(name)
            case _:
                pass
    return names


def frames_to_backward(trees: Trees) -> list[str]:
    """Our functions on the stack while a worker's step runs backward, from `main` on. Another way than by
    `train_step` does not count: that is the function that tells the method."""
    calls: dict[str, set[str]] = {}
    for path in (f"trainer/{name}" for name in STEP):
        imports = [node for node in trees[path].body if isinstance(node, ast.Import)]
        modules = {alias.name for node in imports for alias in node.names}
        for function in functions({path: trees[path]}):
            calls.setdefault(function.name, set()).update(called_names(function, modules))
    above, below = chain(calls, "main", "train_step"), chain(calls, "train_step", "backward")
    return above + below[1:-1] if above and below else []


@dataclass(frozen=True)
class Measure:
    """A row of the table. A measure without a limit is there to be read."""

    name: str
    value: float
    at_most: float = math.inf
    at_least: float = -math.inf

    @property
    def row(self) -> str:
        limits = [("<=", self.at_most), (">=", self.at_least)]
        limit = "".join(f"{sign} {bound:,}" for sign, bound in limits if math.isfinite(bound))
        miss = "" if self.at_least <= self.value <= self.at_most else "missed"
        value = f"{self.value:,.2f}" if isinstance(self.value, float) else f"{self.value:,}"
        return f"{self.name:56}{value:>9}  {limit:10}{miss}".rstrip()


def percentile_90(values: Sequence[int]) -> int:
    return sorted(values)[int(0.9 * len(values))]


def measures(trees: Trees) -> list[Measure]:
    """The table. Limits are those that the house has set itself; the limit of lines is its size before it did."""
    lines = {path: (ROOT / path).read_text().count("\n") for path in trees}
    comments = {path: comment_lines(path) for path in trees}
    lengths = [(node.end_lineno or 0) - node.lineno + 1 for node in functions(trees)]
    comprehensions = sum(isinstance(node, Comprehension) for tree in trees.values() for node in ast.walk(tree))
    entries = [path for path in (ROOT / "trainer").iterdir() if path.name != "__pycache__"]
    frames = frames_to_backward(trees)

    def commented(prefix: str) -> float:
        paths = [path for path in trees if path.startswith(prefix)]
        return 100 * sum(comments[path] for path in paths) / sum(lines[path] for path in paths)

    return [
        Measure("lines of source", sum(lines.values())),
        Measure("lines of a file: 90th percentile", percentile_90([*lines.values()]), at_most=350),
        Measure("lines of a file: longest", max(lines.values())),
        Measure("lines of a function: median", int(statistics.median(lengths))),
        Measure("lines of a function: 90th percentile", percentile_90(lengths), at_most=30),
        Measure("lines of a function: longest", max(lengths)),
        Measure("comprehensions in 1,000 lines", 1_000 * comprehensions / sum(lines.values())),
        Measure("comments, % of lines", commented(""), at_least=4),
        *(Measure(f"comments, % of lines: {path}", commented(path), at_least=8) for path in METHOD),
        Measure(
            "private helpers with one caller, % of functions",
            100 * len(single_caller_helpers(trees)) / len(lengths),
            at_most=15,
        ),
        Measure("bindings with a placeholder name", len(placeholders(trees)), at_most=0),
        Measure("docstrings that begin with Of or By", len(of_docstrings(trees)), at_most=0),
        Measure("frames from worker.main to .backward()", len(frames) or math.inf, at_most=9),
        Measure("entries of trainer/", len(entries), at_most=20),
    ]


def check(trees: Trees) -> int:
    """Refuses placeholder names in sources, and says how many the tests have: there they are allowed, not wanted."""
    names = placeholders(trees)
    print(*names, sep="\n", end="\n" if names else "")
    print(f"placeholder names in sources: {len(names)}")
    folders = Counter(str(Path(name).parent) for name in placeholders(parsed("bench", "tests")))
    print("elsewhere:", ", ".join(f"{folder} {count}" for folder, count in sorted(folders.items())) or "none")
    return 1 if names else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Prints how the sources read, beside the limits.")
    parser.add_argument("--check", action="store_true", help="end with 1 where a source binds a placeholder name")
    trees = parsed(*SOURCES)
    if parser.parse_args().check:
        return check(trees)
    print(*(measure.row for measure in measures(trees)), sep="\n")
    print("frames:", " > ".join(frames_to_backward(trees)) or "none goes through train_step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
