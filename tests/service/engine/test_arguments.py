"""What is said before vLLM starts of a base that cannot be cut as it is asked for."""

import json
from pathlib import Path

import pytest

from adapters.errors import UserError
from service.engine.arguments import _check_parts
from service.settings import EngineNumbers


@pytest.mark.parametrize(
    ("heads", "pairs", "vocabulary", "fit"), [(32, 8, 151_936, {2, 4, 8, 16}), (6, 3, 380, {3, 6})]
)
def test_a_base_is_cut_where_heads_and_vocabulary_allow_it(
    heads: int, pairs: int, vocabulary: int, fit: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.arguments.on_cpu", lambda: True)
    text = {"num_attention_heads": heads, "num_key_value_heads": pairs, "vocab_size": vocabulary}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text}))
    for count in range(2, 17):
        if count in fit:
            _check_parts(tmp_path, EngineNumbers(tensor_parallel=count))
        else:
            with pytest.raises(UserError, match=f"--tensor-parallel {count}: the base has {heads} heads, {pairs} of"):
                _check_parts(tmp_path, EngineNumbers(tensor_parallel=count))


def test_a_vocabulary_that_cannot_be_cut_is_told_with_what_vllm_makes_of_it(tmp_path: Path) -> None:
    text = {"num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 300}
    (tmp_path / "config.json").write_text(json.dumps(text))
    with pytest.raises(UserError, match="and room for 320 tokens; take a number that divides them"):
        _check_parts(tmp_path, EngineNumbers(tensor_parallel=3))
