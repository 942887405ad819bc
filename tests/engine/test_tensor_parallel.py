"""A core of three processes, each with a third of the base's heads: it scores as PEFT does."""

from collections.abc import Iterator

import pytest

from adapters.base import locate
from tests.engine.conftest import EngineThread
from tests.engine.test_scores import CASES, differences, random_ids

pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def split(adapter_folders) -> Iterator[tuple[EngineThread, dict]]:
    """The miniature has six heads, and three of keys and values."""
    thread = EngineThread("float32", locate("miniature"), tensor_parallel=3)
    loaded = {name: thread.run(thread.engine.load(f"{name}@1", folder)) for name, folder in adapter_folders.items()}
    yield thread, loaded | {"base": None}
    thread.close()


@pytest.mark.parametrize("case", CASES)
def test_a_base_split_over_processes_scores_as_peft_does(case: str, split, reference) -> None:
    thread, loaded = split
    messages, media = CASES[case]
    completions = [random_ids(count, seed) for seed, count in enumerate((1, 17, 40))]
    errors = differences(thread, reference, loaded, thread.engine.chat_ids(messages), media, completions)
    assert errors.max() < 1e-3
    assert errors.mean() < 1e-5
