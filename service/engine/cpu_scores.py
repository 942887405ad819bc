"""Rows of log-probabilities on CPU: a completion's alone, for its tokens and the likeliest or the requested ones.

For every token of a prompt vLLM's runner for CPU makes a row of the whole vocabulary, normalises it, sorts it and ranks
the token in it; whoever asks for certain ids is sent the whole row. A score needs the rows of the completion and no
rank. With 152 thousand rows of vocabulary that is most of what a score costs.

vLLM's newer runner can be told ids and a first row (`prompt_logprob_token_ids`, `prompt_logprob_start`); that for CPU
refuses them, so they come as `extra_args` under names of our own. R: rows, V: vocabulary, k: columns.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FIRST_ROW = "coevo_first_row"
TOKEN_IDS = "coevo_token_ids"

ROWS_AT_ONCE = 128
"""Of logits: enough for a fast product, and bounded for completions of thousands of tokens."""
CACHED_NUMBERS = 2**18
"""A piece of that many floats stays in the processor's cache between the passes over it; that is four times faster."""
BLOCK = 128


def score_args(first_row: int, token_ids: Sequence[Sequence[int]] | None) -> dict[str, Any]:
    """`extra_args` of a request. Row i predicts the prompt's token i + 1."""
    return {FIRST_ROW: first_row, TOKEN_IDS: None if token_ids is None else [list(row) for row in token_ids]}


def score_completions_alone() -> None:
    """In each of vLLM's processes. Requests without our `extra_args` get what vLLM gives."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    runner_class: Any = GPUModelRunner
    whole_prompts = runner_class._get_prompt_logprobs_dict

    def prompt_logprobs(runner: Any, hidden_states_TD: Tensor, num_scheduled: dict[str, int]) -> dict[str, Any]:
        requests = {name: runner.requests[name] for name in runner.num_prompt_logprobs}
        scores = {name: request for name, request in requests.items() if FIRST_ROW in _arguments(request)}
        widths = {name: runner.num_prompt_logprobs.pop(name) for name in scores}
        logprobs = whole_prompts(runner, hidden_states_TD, num_scheduled)
        for name, request in scores.items():
            num_tokens = num_scheduled.get(name)
            if num_tokens is not None:  # else it waits for room
                offset = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[name]])
                _add_rows(runner, request, hidden_states_TD[offset : offset + num_tokens], widths[name])
                if request.num_computed_tokens + num_tokens >= len(request.prompt_token_ids):
                    logprobs[name] = request.in_progress_prompt_logprobs_cpu
                    request.in_progress_prompt_logprobs_cpu = None
                    continue
            runner.num_prompt_logprobs[name] = widths[name]
        return logprobs

    runner_class._get_prompt_logprobs_dict = prompt_logprobs


def _arguments(request: Any) -> dict[str, Any]:
    return request.sampling_params.extra_args or {}


def _add_rows(runner: Any, request: Any, hidden_states_TD: Tensor, width: int) -> None:
    """The completion's rows among the positions that this step computes of a prompt, which may come in pieces."""
    from vllm.v1.outputs import LogprobsTensors

    first_row, last_row = _arguments(request)[FIRST_ROW], len(request.prompt_token_ids) - 1  # which has no row
    if request.in_progress_prompt_logprobs_cpu is None:
        # Its width is what the request was let in with, so vLLM reads nothing that is not written here.
        request.in_progress_prompt_logprobs_cpu = LogprobsTensors.empty_cpu(last_row - first_row, width + 1)
    start = request.num_computed_tokens
    rows = range(max(start, first_row), min(start + len(hidden_states_TD), last_row))
    for at in range(rows.start, rows.stop, ROWS_AT_ONCE):
        chunk = slice(at, min(at + ROWS_AT_ONCE, rows.stop))
        logits_RV = runner.model.compute_logits(hidden_states_TD[chunk.start - start : chunk.stop - start])
        columns = torch.tensor(request.prompt_token_ids[chunk.start + 1 : chunk.stop + 1])[:, None]
        token_ids = _arguments(request)[TOKEN_IDS]
        target = slice(chunk.start - first_row, chunk.stop - first_row)
        if token_ids is not None:
            requested_Rk = torch.tensor(token_ids[target], dtype=torch.int64)
            columns = torch.cat((columns, requested_Rk), dim=1)
        ids_Rk, logprobs_Rk = _columns(logits_RV, columns, likeliest=0 if token_ids is not None else width)
        request.in_progress_prompt_logprobs_cpu.logprob_token_ids[target] = ids_Rk.to(torch.int32)
        request.in_progress_prompt_logprobs_cpu.logprobs[target] = logprobs_Rk
        request.in_progress_prompt_logprobs_cpu.selected_token_ranks[target] = 0  # nobody reads it


def _columns(logits_RV: Tensor, ids_Rk: Tensor, likeliest: int) -> tuple[Tensor, Tensor]:
    """Ids and log softmax of the columns `ids_Rk`, and of the likeliest tokens beside them."""
    pieces: list[tuple[Tensor, Tensor]] = []
    rows = max(1, CACHED_NUMBERS // logits_RV.shape[1])
    for logits, ids in zip(logits_RV.split(rows), ids_Rk.split(rows), strict=True):
        logprobs_RV = logits.log_softmax(dim=-1, dtype=torch.float32)
        logprobs = logprobs_RV.gather(1, ids)
        if likeliest:
            top_logprobs, top_ids = top(logprobs_RV, likeliest)
            ids, logprobs = torch.cat((ids, top_ids), dim=1), torch.cat((logprobs, top_logprobs), dim=1)
        pieces.append((ids, logprobs))
    ids_pieces, logprobs_pieces = zip(*pieces, strict=True)
    return torch.cat(ids_pieces), torch.cat(logprobs_pieces)


def top(values_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their places, four times faster than torch's on a long row.

    The k largest lie in the k blocks with the largest maxima; so only these are sorted.
    """
    num_blocks = values_RV.shape[1] // BLOCK
    if num_blocks * BLOCK != values_RV.shape[1] or num_blocks <= k:
        values, places = values_RV.topk(k, dim=1)
        return values, places
    blocks_RNB = values_RV.unflatten(1, (num_blocks, BLOCK))
    best_Rk = blocks_RNB.amax(dim=2).topk(k, dim=1).indices
    candidates = blocks_RNB.gather(1, best_Rk[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    values, places = candidates.topk(k, dim=1)
    return values, best_Rk.gather(1, places // BLOCK) * BLOCK + places % BLOCK
