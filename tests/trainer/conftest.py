"""The miniature as a policy, loaded once; and a queue server for each module that wants one."""

import itertools
from collections.abc import Callable, Generator
from typing import Any

import pytest

from trainer.queue.server import Server, start

_numbers = itertools.count()


@pytest.fixture(scope="session")
def policy() -> Any:
    """In float32. Tests share it: adapters come and go by `noisy`."""
    from tests.trainer.update.packs import BASE
    from trainer.update.policy import load_policy

    return load_policy(BASE, dtype="float32")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    with start(tmp_path_factory.mktemp("queue")) as server:
        yield server


@pytest.fixture
def noisy(policy: Any) -> Generator[Callable[..., str]]:
    """Makes adapters that are not the base, for the length of a test. Gives their names."""
    from tests.trainer.update.packs import noisy as add

    names: list[str] = []

    def make(seed: int = 0, **settings: Any) -> str:
        names.append(f"noisy{next(_numbers)}")
        add(policy, names[-1], seed, **settings)
        return names[-1]

    yield make
    for name in names:
        policy.adapters.remove(name)
