"""What a recipe says of the service, by the names of the service's settings; and whether a service is as it says.

Left out: where it listens and keeps its files, which changes nothing that is computed.
"""

from adapters.errors import UserError
from service.schemas import AdaptersResponse
from service.settings import Settings
from trainer.recipe import Recipe
from trainer.recipe.limits import limits


def service_numbers(recipe: Recipe) -> dict[str, object]:
    """The settings of a service that works for the recipe."""
    engine, media, derived = recipe.engine, recipe.media, limits(recipe)
    return {
        "base": recipe.base.name,
        "dtype": recipe.served_dtype,
        "max_model_len": recipe.rollout.max_model_len,
        "max_lora_rank": recipe.max_lora_rank,
        "max_loras": engine.max_loras,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "kv_cache_gib": engine.kv_cache_gib,
        "data_parallel": engine.data_parallel,
        "tensor_parallel": engine.tensor_parallel,
        "top_k": engine.top_k,
        "adapter_cache": engine.adapter_cache,
        "max_requests": derived.admitted_requests,
        "max_tokens": derived.admitted_tokens,
        "max_waiting": derived.waiting,
        "max_wait_s": derived.wait_s,
        "request_timeout_s": derived.request_s,
        "body_bytes": derived.body_bytes,
        # Of two, or the largest would always be one too many.
        "bodies_bytes": max(Settings().bodies_bytes, 2 * derived.body_bytes),
        "record_bytes": derived.record_bytes,
        "scores_bytes": derived.scores_bytes,
        "pixels_bytes": derived.media_bytes,
        "max_closed_s": max(Settings().max_closed_s, derived.request_s),  # the longest call alone shuts nobody out
        **media.model_dump(),
    }


def check_service(service: AdaptersResponse, recipe: Recipe, base: str | None = None) -> None:
    """A UserError if the run would compute something else there, or cannot go on at all. `base` is a digest."""
    problems: list[str] = []
    if base is not None and service.base.digest != base:
        here, there = (digest.removeprefix("sha256:")[:12] for digest in (base, service.base.digest))
        problems.append(f"its base is {service.base.name} ({there}), base.name is {recipe.base.name} ({here})")
    # Other pixels are another prompt, so these must be equal; of the limits more will do.
    for name, wanted in recipe.media.model_dump().items():
        if (value := getattr(service.media, name)) != wanted:
            problems.append(f"its {name} is {value:g}, media.{name} is {wanted:g}")
    for name, value, wanted in (
        ("max_model_len", service.limits.max_model_len, recipe.rollout.max_model_len),
        ("max_lora_rank", service.limits.rank, recipe.lora.rank),
        ("top_k", service.limits.top_k, recipe.engine.top_k),
        # With less, the longest completions would be given up, and their step tried again and again.
        ("request_timeout_s", service.limits.request_timeout_s, limits(recipe).request_s),
    ):
        if value < wanted:
            problems.append(f"its {name} is {value:g}, {wanted:g} are needed")
    if problems:
        raise UserError(f"the service is not the recipe's: {'; '.join(problems)}; start it with: coevo serve RECIPE")
