import math
from collections.abc import Sequence

import numpy as np
import pytest

from trainer.compare.answers import ResultAnswers
from trainer.compare.standings import Claim, Line, Standings, Table, absorption, centred, tables, verdicts
from trainer.evaluation.intervals import interval
from trainer.recipe import MethodConfig

A, B = Line("a", "a"), Line("b", "b")
METHOD = MethodConfig(topology="hub", hub="text")  # 3 RLVR steps and 2 of distillation in a cycle
TABLE = Table("t", ("text", "image"), (A, B), (Claim(A, B), Claim(A, B, "image")))


def answers(system: str, exam: str, by_seed: Sequence[Sequence[float]], row: str = "") -> list[ResultAnswers]:
    return [
        ResultAnswers(seed, system, row, exam, "greedy", tuple(rewards), 10.0, 0.0)
        for seed, rewards in enumerate(by_seed)
    ]


def drawn(mean: float, seeds: int = 3, questions: int = 200, number: int = 0) -> list[list[float]]:
    rng = np.random.default_rng(number)
    return (rng.random((seeds, questions)) < mean).astype(float).tolist()


def test_the_mean_is_that_of_exams_which_count_alike():
    standings = Standings([*answers("a", "text", [[1, 1, 1, 1]]), *answers("a", "image", [[0, 1]])])
    assert standings.accuracy(A, ["text", "image"], "greedy").mean == pytest.approx(0.75)


def test_how_hard_an_exam_is_does_not_widen_the_interval():
    """Against the closed form: independent questions of two exams, one seed."""
    text, image = np.array(drawn(0.9, 1)), np.array(drawn(0.3, 1, number=1))
    variance = text.var(ddof=0) / text.size + image.var(ddof=0) / image.size
    mean = interval(centred([text, image]))
    assert mean.mean == pytest.approx((text.mean() + image.mean()) / 2)
    assert mean.error == pytest.approx(math.sqrt(variance) / 2, rel=0.01)


def test_the_luck_of_a_seed_in_all_exams_is_not_averaged_away():
    luck = np.array([[-0.2], [0.0], [0.2]])
    shared = interval(centred([0.5 + luck + np.zeros((3, 50)), 0.5 + luck + np.zeros((3, 50))]))
    assert shared.error == pytest.approx(0.2 / math.sqrt(3), rel=0.05)


def test_a_verdict_goes_by_the_interval_of_the_difference():
    better, worse = drawn(0.9), drawn(0.5, number=1)
    for ahead, behind, word in (
        (better, worse, "holds"),
        (worse, better, "fails"),
        (better, drawn(0.9, number=2), "undecided"),
    ):
        rows = [answers("a", exam, ahead) + answers("b", exam, behind) for exam in ("text", "image")]
        standings = Standings([*rows[0], *rows[1]])
        assert [verdict.word for verdict in verdicts(standings, TABLE, "greedy")] == [word, word]


def test_differences_are_paired_by_question_and_seed():
    values = drawn(0.5)
    lower = [[max(0.0, value - 0.1) for value in seed] for seed in values]
    standings = Standings([*answers("a", "text", values), *answers("b", "text", lower)])
    difference = standings.difference(A, B, ["text"], "greedy")
    assert difference.mean == pytest.approx(0.1 * np.mean(values))
    assert difference.half_width is not None
    assert difference.half_width < 0.02


def test_only_seeds_that_both_have_are_compared():
    standings = Standings([*answers("a", "text", [[1, 1], [0, 0]]), *answers("b", "text", [[0, 1]])])
    assert standings.difference(A, B, ["text"], "greedy").mean == pytest.approx(0.5)
    assert standings.by_seed(A, ["text"], "greedy") == {0: 1.0, 1: 0.0}


def test_a_question_that_nobody_could_judge_is_left_out():
    rows = [ResultAnswers(0, "a", "", "text", "greedy", (1.0, None, 0.0, 1.0), 1.0, 0.0)]
    assert Standings(rows).accuracy(A, ["text"], "greedy").mean == pytest.approx(2 / 3)


def test_the_papers_tables_have_the_lines_that_were_answered():
    rows = [
        line
        for system, row in [
            ("base", ""),
            ("experts", "text"),
            ("experts", "image"),
            ("mixed2", ""),
            ("copd2", "merged"),
        ]
        for exam in ("text", "image", "video")
        for line in answers(system, exam, drawn(0.5), row)
    ]
    (table,) = tables(METHOD, ("text", "image", "video"), Standings(rows))
    assert table.title == "two branches"
    assert [line.label for line in table.lines] == ["base", "image expert", "text expert", "mixed RLVR", "CoPD"]
    assert all(claim.ahead in table.lines and claim.behind in table.lines for claim in table.claims)


def test_shares_of_the_sweep_are_a_table_of_their_own():
    rows = [line for system in ("copd3", "r4o1", "r1o4") for exam in ("text", "image")
            for line in answers(system, exam, drawn(0.5), "merged")]  # fmt: skip
    (table,) = tables(METHOD, ("image", "text"), Standings(rows))
    assert table.exams == ("text", "image")
    assert [line.label for line in table.lines] == ["CoPD, 4 : 1", "CoPD, 1 : 4", "CoPD"]
    assert [claim.behind.system for claim in table.claims] == ["r4o1", "r1o4"]


def test_absorption_is_the_share_of_the_teachers_lead():
    """At the seeds that the student has: another seed's teacher, which knows nothing, does not count."""
    rows = [*answers("base", "text", [[0, 0, 0, 0], [0, 0, 0, 0]]), *answers("a", "text", [[1, 0, 0, 0]]),
            *answers("b", "text", [[1, 1, 0, 0], [0, 0, 0, 0]])]  # fmt: skip
    assert absorption(Standings(rows), "text", A, Line("base", "base"), B, "greedy") == pytest.approx(0.5)
    assert absorption(Standings(rows), "text", A, B, Line("base", "base"), "greedy") is None
