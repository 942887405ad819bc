import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.update.packs import dense_mask
from trainer.parts import Completion, Prompt, Rollout
from trainer.update.packing import Pack, lay_out, pack, rollout_tokens, share_out

QUICK = settings(max_examples=60)
PROMPT = Prompt("id", "text", (), "")
SHAPES = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=6)), min_size=1, max_size=6
)


def make(shapes: list[tuple[int, list[int]]]) -> list[Rollout]:
    """Rollouts in which no id comes twice, so that a token says where it is from."""
    fresh = iter(range(10_000))

    def ids(count: int) -> np.ndarray:
        return np.array([next(fresh) for _ in range(count)])

    def completion(length: int) -> Completion:
        return Completion(ids(length), np.zeros(length, np.float32), advantages_C=np.ones(length, np.float32))

    return [
        Rollout(PROMPT, ids(prompt), tuple(completion(length) for length in completions))
        for prompt, completions in shapes
    ]


def one_pack(tokens: int) -> Pack:
    return lay_out(make([(tokens, [1])]))


@QUICK
@given(SHAPES, st.integers(2, 40))
def test_a_row_keeps_the_budget_unless_a_single_completion_is_longer(
    shapes: list[tuple[int, list[int]]], budget: int
) -> None:
    for row in pack(make(shapes), budget):
        assert len(row.ids_T) <= budget or len(list(row.completions)) == 1


@QUICK
@given(SHAPES, st.integers(2, 40))
def test_every_completion_is_there_once_and_in_its_order(shapes: list[tuple[int, list[int]]], budget: int) -> None:
    rollouts = make(shapes)
    rows = pack(rollouts, budget)
    given = [completion for rollout in rollouts for completion in rollout.completions]
    assert [completion for row in rows for completion in row.completions] == given
    np.testing.assert_array_equal(
        np.concatenate([row.targets_N for row in rows]), np.concatenate([completion.ids_C for completion in given])
    )


@QUICK
@given(SHAPES, st.integers(2, 40))
def test_every_token_is_predicted_from_the_one_before_it(shapes: list[tuple[int, list[int]]], budget: int) -> None:
    rollouts = make(shapes)
    before = {
        int(token): int(earlier)
        for rollout in rollouts
        for completion in rollout.completions
        for token, earlier in zip(completion.ids_C, [rollout.ids_P[-1], *completion.ids_C[:-1]], strict=True)
    }
    predicted_from = {
        int(token): int(row.ids_T[source])
        for row in pack(rollouts, budget)
        for token, source in zip(row.targets_N, row.sources_N, strict=True)
    }
    assert predicted_from == before


@QUICK
@given(SHAPES, st.integers(2, 40))
def test_a_span_tells_where_the_tokens_of_its_group_are(shapes: list[tuple[int, list[int]]], budget: int) -> None:
    for row in pack(make(shapes), budget):
        assert [span.start for span in row.spans] == [0, *(span.end for span in row.spans[:-1])]
        assert row.spans[-1].end == len(row.ids_T)
        for rollout, span in zip(row.rollouts, row.spans, strict=True):
            inputs = [rollout.ids_P, *(completion.ids_C[:-1] for completion in rollout.completions)]
            np.testing.assert_array_equal(row.ids_T[span.start : span.end], np.concatenate(inputs))
            assert (span.prompt, *span.completions) == tuple(len(ids) for ids in inputs)
            assert rollout_tokens(rollout) == span.end - span.start


def test_a_group_is_split_only_when_it_does_not_fit() -> None:
    rollouts = make([(5, [4, 4, 4, 4])])
    assert [row.spans[0].completions for row in pack(rollouts, 17)] == [(3, 3, 3, 3)]
    assert [row.spans[0].completions for row in pack(rollouts, 16)] == [(3, 3, 3), (3,)]
    assert [row.spans[0].completions for row in pack(rollouts, 3)] == [(3,), (3,), (3,), (3,)]


def test_groups_share_a_row_while_there_is_room() -> None:
    rollouts = make([(5, [4]), (5, [4]), (5, [4])])
    assert [len(row.rollouts) for row in pack(rollouts, 24)] == [3]
    assert [len(row.rollouts) for row in pack(rollouts, 23)] == [2, 1]


def test_the_rest_of_a_split_group_shares_its_row_with_the_next() -> None:
    rows = pack(make([(5, [4, 4, 4, 4]), (5, [4])]), 16)
    assert [[span.completions for span in row.spans] for row in rows] == [[(3, 3, 3)], [(3,), (3,)]]


@QUICK
@given(SHAPES)
def test_pairs_are_those_that_attention_computes(shapes: list[tuple[int, list[int]]]) -> None:
    row = lay_out(make(shapes))
    assert row.num_pairs == int(dense_mask(row.spans).sum())


@QUICK
@given(SHAPES, st.integers(2, 40), st.integers(1, 5))
def test_processes_share_all_packs_out(shapes: list[tuple[int, list[int]]], budget: int, ranks: int) -> None:
    rows = pack(make(shapes), budget)
    shares = share_out(rows, ranks)
    assert len(shares) == ranks
    assert sorted(number for share in shares for number in share) == list(range(len(rows)))
    assert all(share == sorted(share) for share in shares)


@pytest.mark.parametrize(("packs", "ranks", "sizes"), [(8, 4, [2, 2, 2, 2]), (5, 2, [2, 3]), (1, 3, [0, 0, 1])])
def test_equal_packs_are_shared_out_evenly(packs: int, ranks: int, sizes: list[int]) -> None:
    assert sorted(map(len, share_out([one_pack(10)] * packs, ranks))) == sizes


def test_a_large_pack_is_balanced_by_small_ones() -> None:
    packs = [one_pack(tokens) for tokens in (30, 20, 30, 10, 90)]
    assert sorted(share_out(packs, 2)) == [[0, 1, 2, 3], [4]]
