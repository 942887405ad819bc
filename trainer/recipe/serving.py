"""What a recipe says of the service, by the names of the service's settings; and whether a service is as it says.

Left out: where it listens and keeps its files, which changes nothing that is computed.
"""

from adapters.errors import UserError
from service.schemas import AdaptersResponse
from trainer.recipe import Recipe


def service_numbers(recipe: Recipe) -> dict[str, object]:
    """The settings of a service that works for the recipe."""
    engine, media = recipe.engine, recipe.media
    return {
        "base": recipe.base.name,
        "dtype": recipe.base.dtype if engine.dtype == "base" else engine.dtype,
        "max_model_len": recipe.rollout.max_model_len,
        "max_lora_rank": recipe.max_lora_rank,
        "max_loras": engine.max_loras,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "kv_cache_gib": engine.kv_cache_gib,
        "top_k": engine.top_k,
        "adapter_cache": engine.adapter_cache,
        **media.model_dump(),
    }


def check_service(service: AdaptersResponse, recipe: Recipe) -> None:
    """A UserError if the run would compute something else there, or cannot go on at all."""
    problems: list[str] = []
    # Other pixels are another prompt, so these must be equal; of the limits more will do.
    for name, wanted in recipe.media.model_dump().items():
        if (value := getattr(service.media, name)) != wanted:
            problems.append(f"its {name} is {value:g}, media.{name} is {wanted:g}")
    for name, value, wanted in (
        ("max_model_len", service.limits.max_model_len, recipe.rollout.max_model_len),
        ("max_lora_rank", service.limits.rank, recipe.lora.rank),
        ("top_k", service.limits.top_k, recipe.engine.top_k),
    ):
        if value < wanted:
            problems.append(f"its {name} is {value}, {wanted} are needed")
    if problems:
        raise UserError(f"the service is not the recipe's: {'; '.join(problems)}; start it with: coevo serve RECIPE")
