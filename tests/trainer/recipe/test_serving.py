"""A recipe's service: what it is started with, and what a run refuses to work with."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import UserError
from service.schemas import AdaptersResponse, BaseInfo, EngineInfo, LimitsInfo, MediaInfo
from service.settings import add_arguments, read
from trainer.recipe.file import load
from trainer.recipe.serving import check_service, service_numbers

RECIPE = load(Path("recipes/miniature.toml"))


def served(**changes) -> AdaptersResponse:
    """What a service that was started with the recipe says, but for some numbers."""
    numbers: dict[str, Any] = service_numbers(RECIPE) | changes
    media = MediaInfo.model_validate({name: numbers[name] for name in MediaInfo.model_fields})
    limits = LimitsInfo(
        rank=numbers["max_lora_rank"],
        max_model_len=numbers["max_model_len"],
        top_k=numbers["top_k"],
        body_bytes=1,
        request_timeout_s=numbers["request_timeout_s"],
    )
    engine = EngineInfo(version="0", dtype=numbers["dtype"])
    return AdaptersResponse(
        base=BaseInfo(name="miniature", digest="sha256:0"), branches={}, limits=limits, media=media, engine=engine
    )


def test_every_number_is_one_of_the_services_settings() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = vars(parser.parse_args([]))
    numbers = service_numbers(RECIPE)
    assert numbers.keys() <= flags.keys()
    settings = read(flags, {}, numbers)
    assert settings.media.model_dump() == RECIPE.media.model_dump()
    assert settings.engine.max_model_len == RECIPE.rollout.max_model_len
    check_service(served(), RECIPE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_max_pixels": 262144}, "its image_max_pixels is 262144, media.image_max_pixels is 16384"),
        ({"fps": 1.0}, "its fps is 1, media.fps is 2"),
        ({"max_model_len": 100}, "its max_model_len is 100, 209 are needed"),
        ({"max_lora_rank": 8}, "its max_lora_rank is 8, 16 are needed"),
        ({"top_k": 5}, "its top_k is 5, 20 are needed"),
        ({"request_timeout_s": 30}, "its request_timeout_s is 30, 600 are needed"),
    ],
)
def test_another_service_is_told_with_what_differs(change, said) -> None:
    with pytest.raises(UserError, match=said):
        check_service(served(**change), RECIPE)


def test_a_service_of_another_base_is_told_with_both() -> None:
    check_service(served(), RECIPE, "sha256:0")
    with pytest.raises(UserError, match=r"its base is miniature \(0\), base.name is miniature \(abcd\)"):
        check_service(served(), RECIPE, "sha256:abcd")


def test_a_larger_service_will_do() -> None:
    check_service(served(max_lora_rank=64, max_model_len=4096, top_k=50), RECIPE)
