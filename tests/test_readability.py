"""The measures of the sources: what counts as a placeholder name, as a helper with one caller, as a frame."""

import ast

from tests import readability

CALLS = {"main": {"work", "helper"}, "work": {"train_step"}, "helper": {"work"}, "train_step": {"learn"}}
MODULE = """
class Rows:
    found: int

def join(rows, *others):
    for _one in rows:
        index = [row for row in _one]
    return index
"""


def test_placeholder_names_are_caught_wherever_they_are_bound() -> None:
    names = readability.placeholders({"rows.py": ast.parse(MODULE)})

    assert names == ["rows.py:3: found", "rows.py:5: others", "rows.py:6: _one"]


def test_names_that_say_something_pass_though_they_hold_a_placeholder() -> None:
    clean = "found_at = one_by_one(rows)\nreply = rows.found + other\n"

    assert readability.placeholders({"rows.py": ast.parse(clean)}) == []


def test_a_private_helper_counts_where_its_module_uses_it_once() -> None:
    module = "def _once(): pass\ndef _twice(): _once()\ndef public(): _twice(); _twice()\n"

    assert readability.single_caller_helpers({"a.py": ast.parse(module)}) == ["a.py: _once"]


def test_the_chain_is_the_shortest_and_empty_where_there_is_none() -> None:
    assert readability.chain(CALLS, "main", "train_step") == ["main", "work", "train_step"]
    assert readability.chain(CALLS, "train_step", "main") == []


def test_variables_and_functions_of_modules_are_no_calls_of_ours() -> None:
    (function,) = ast.parse("def work(learner):\n    update = learner.learn()\n    asyncio.run(follow(update))\n").body
    assert isinstance(function, ast.FunctionDef)

    assert readability.called_names(function, {"asyncio"}) == {"learn", "follow"}
