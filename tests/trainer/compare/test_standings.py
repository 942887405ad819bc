import math
from collections.abc import Sequence

import numpy as np
import pytest

from trainer.compare.answers import ResultAnswers
from trainer.compare.standings import Claim, Line, Standings, Table, centred, gain_share, tables, verdicts
from trainer.evaluation.intervals import interval
from trainer.recipe import MethodConfig

A, B = Line("a", "a"), Line("b", "b")
METHOD = MethodConfig(topology="hub", hub="text")  # 3 RLVR steps and 2 of distillation in a cycle
TABLE = Table("t", ("text", "image"), (A, B), (Claim(A, B), Claim(A, B, "image")), (0, 1, 2))


def answers(
    system: str, exam: str, by_seed: Sequence[Sequence[float]], row: str = "", way: str = "greedy"
) -> list[ResultAnswers]:
    return [
        ResultAnswers(seed, system, row, exam, way, tuple(rewards), 10.0, 0.0) for seed, rewards in enumerate(by_seed)
    ]


def drawn(mean: float, seeds: int = 3, questions: int = 200, number: int = 0) -> list[list[float]]:
    rng = np.random.default_rng(number)
    return (rng.random((seeds, questions)) < mean).astype(float).tolist()


def test_the_mean_is_that_of_exams_which_count_alike():
    standings = Standings([*answers("a", "text", [[1, 1, 1, 1]]), *answers("a", "image", [[0, 1]])])
    assert standings.accuracy(A, ["text", "image"], "greedy", [0]).mean == pytest.approx(0.75)


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
        assert [verdict.word for verdict in verdicts(standings, [TABLE])[TABLE]] == [word, word]


def test_nothing_is_decided_by_one_seed():
    rows = [*answers("a", "text", drawn(0.9, 1)), *answers("b", "text", drawn(0.1, 1, number=1))]
    table = Table("t", ("text",), (A, B), (Claim(A, B),), (0,))
    (verdict,) = verdicts(Standings(rows), [table])[table]
    assert (verdict.word, verdict.p) == ("one seed", None)
    assert verdict.difference.mean > 0.5


def test_a_claim_may_fall_to_the_number_of_those_beside_it():
    """A p-value of 0.03 holds alone; Holm wants each of three such below 0.05 / 3."""
    rng = np.random.default_rng(3)
    seeds, rows = 8, list[ResultAnswers]()
    for exam in ("text", "image", "video"):
        base = rng.random((seeds, 50)) * 0.1
        # The same small lead everywhere, with a spread between seeds that makes it just significant alone.
        lead = np.linspace(-0.012, 0.06, seeds)[:, None]
        rows += [*answers("a", exam, (base + lead).tolist()), *answers("b", exam, base.tolist())]
    standings = Standings(rows)
    together = Table("t", ("text", "image", "video"), (A, B),
                     tuple(Claim(A, B, exam) for exam in ("text", "image", "video")), tuple(range(seeds)))  # fmt: skip
    alone = Table("t", ("text",), (A, B), (Claim(A, B),), tuple(range(seeds)))
    (single,) = verdicts(standings, [alone])[alone]
    assert single.p is not None
    assert 0.05 / 3 < single.p < 0.05
    family = verdicts(standings, [together])[together]
    assert [verdict.word for verdict in family] == ["undecided"] * 3
    assert family[0].p == pytest.approx(3 * single.p)
    controls = Table("t", ("text",), (A, B), (Claim(A, B, is_papers=False),), tuple(range(seeds)))
    # Claims of ours are another family: they cost the paper's nothing.
    both = verdicts(standings, [alone, controls])
    assert both[alone][0].p == pytest.approx(single.p)
    assert both[controls][0].p == pytest.approx(single.p)


def test_differences_are_paired_by_question_and_seed():
    values = drawn(0.5)
    lower = [[max(0.0, value - 0.1) for value in seed] for seed in values]
    standings = Standings([*answers("a", "text", values), *answers("b", "text", lower)])
    difference = standings.difference(A, B, ["text"], "greedy", [0, 1, 2])
    assert difference.mean == pytest.approx(0.1 * np.mean(values))
    assert difference.half_width is not None
    assert difference.half_width < 0.02


def test_a_table_stands_on_the_seeds_that_all_its_lines_have():
    """A line with fewer has a table of its own, with what it is compared with at those seeds."""
    many, few = drawn(0.5), drawn(0.5, 1)
    rows = [line for exam in ("text", "image", "video")
            for system, row, values in [("base", "", many), ("mixed3", "", many), ("copd3", "merged", many),
                                        ("mopd-equal", "", few)]
            for line in answers(system, exam, values, row)]  # fmt: skip
    whole, narrow = tables(METHOD, ("text", "image", "video"), Standings(rows))
    assert [line.label for line in whole.lines] == ["base", "mixed RLVR", "CoPD"]
    assert [line.label for line in narrow.lines] == ["MOPD, equal steps", "CoPD"]
    assert (whole.seeds, narrow.seeds) == ((0, 1, 2), (0,))


def test_a_question_that_nobody_could_judge_is_left_out():
    rows = [ResultAnswers(0, "a", "", "text", "greedy", (1.0, None, 0.0, 1.0), 1.0, 0.0)]
    assert Standings(rows).accuracy(A, ["text"], "greedy", [0]).mean == pytest.approx(2 / 3)


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


def test_a_share_of_the_gain_is_that_of_its_own_seeds():
    """Another seed's expert, which knows nothing, does not count."""
    base, experts = Line("base", "base"), [B]
    rows = [*answers("base", "text", [[0, 0, 0, 0], [0, 0, 0, 0]]), *answers("a", "text", [[1, 0, 0, 0]]),
            *answers("b", "text", [[1, 1, 0, 0], [0, 0, 0, 0]])]  # fmt: skip
    assert gain_share(Standings(rows), ["text"], A, base, experts, "greedy") == pytest.approx(0.5)
    assert gain_share(Standings(rows), ["text"], A, B, [base], "greedy") is None


def test_the_primary_way_comes_first_and_seeds_without_it_are_named():
    rows = [line for way in ("greedy", "sampled", "primary") for line in answers("a", "text", [[1.0]] * 2, way=way)]
    whole = Standings(rows)
    assert (whole.ways, whole.lacking) == (["primary", "greedy", "sampled"], [])
    # A result of one seed was not asked: nothing can stand on that way.
    partly = Standings([line for line in rows if (line.seed, line.way) != (1, "primary")])
    assert (partly.ways, partly.lacking) == (["greedy", "sampled"], [1])


def test_equal_tokens_are_the_first_table_and_the_papers_readings_stand_beside_it():
    systems = [("base", ""), ("mixed3", ""), ("mopd", ""), ("mixed3-tokens", ""), ("mopd-tokens", ""),
               ("merge3-tokens", "merged"), ("mopd-equal", ""), ("copd3", "merged")]  # fmt: skip
    rows = [line for number, (system, row) in enumerate(systems) for exam in ("text", "image", "video")
            for line in answers(system, exam, drawn(0.5, number=number), row)]  # fmt: skip
    first, paper, captions = tables(METHOD, ("text", "image", "video"), Standings(rows))
    assert [line.label for line in first.lines] == [
        "base", "mixed RLVR, equal tokens", "MOPD, equal tokens", "merge of experts, equal tokens", "CoPD"
    ]  # fmt: skip
    assert [line.label for line in paper.lines] == ["base", "mixed RLVR", "MOPD", "CoPD"]
    assert [line.label for line in captions.lines] == ["MOPD, equal steps", "CoPD"]


def test_a_claim_in_two_tables_is_one_test():
    rows = [*answers("a", "text", drawn(0.6)), *answers("b", "text", drawn(0.5, number=1))]
    first, second = (Table(title, ("text",), (A, B), (Claim(A, B),), (0, 1, 2)) for title in ("one", "two"))
    standings = Standings(rows)
    alone, both = verdicts(standings, [first]), verdicts(standings, [first, second])
    assert both[first] == both[second] == alone[first]
