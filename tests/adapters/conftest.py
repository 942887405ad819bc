"""A real PEFT adapter of the miniature, which is also the reference for names and shapes."""

import shutil

import pytest


@pytest.fixture(scope="session")
def saved_by_peft(tmp_path_factory):
    from adapters.validate import TARGETS
    from tests.adapters.peft_files import save_by_peft  # here, as most tests of adapters need no torch

    return save_by_peft(tmp_path_factory.mktemp("peft"), target_modules=sorted(TARGETS))


@pytest.fixture
def adapter(saved_by_peft, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(saved_by_peft, tmp_path / "adapter")
