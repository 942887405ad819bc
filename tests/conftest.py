"""Settings that must stand before torch and vLLM are imported, and the tier of every test."""

import logging
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ |= {
    "OMP_NUM_THREADS": "1",  # two spinning OpenMP pools on two cores cost a factor of twenty
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TORCHDYNAMO_DISABLE": "1",  # else the first log-probs compile for 12 s
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background; our commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("coevo", deadline=None)  # no test is about time
settings.load_profile("coevo")
TIERS = ("reference", "engine", "e2e", "soak")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test without a tier is a unit test."""
    for item in items:
        if not any(item.get_closest_marker(tier) for tier in TIERS):
            item.add_marker("unit")


@pytest.fixture(autouse=True)
def no_log_of_a_command_before() -> Iterator[None]:
    """A command that ran in this process set up its log, which would print into the next test's output."""
    yield
    for handler in [each for each in logging.root.handlers if type(each).__module__ == "service.logs"]:
        logging.root.removeHandler(handler)
    logging.captureWarnings(False)
