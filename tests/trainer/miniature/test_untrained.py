"""The untrained base: its tokens are Qwen's, its template is Qwen3-VL's, and it loads as any checkpoint does."""

import unicodedata
from pathlib import Path

import pytest
import tiktoken
import trl
from tiktoken.load import load_tiktoken_bpe
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from clients.cli import main
from trainer.miniature.untrained import ROWS, build_qwen_tokenizer, vocabulary_file

ROOT = Path(__file__).parents[3]
TEXTS = (
    "What is 12*7? Hello wörld, 你好。\n\n  indented\tand so on…",
    "naïve café — ½ of 1,234.50 €; e\u0301 is é",
    "don't WE'LL 'tis   \r\n \n x",
    "🙂👩‍👩‍👧 مرحبا भाषा ภาษาไทย",
)
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_qwen_tokenizer(vocabulary_file())


def test_texts_become_the_tokens_that_tiktoken_makes_of_them(tokenizer: PreTrainedTokenizerFast) -> None:
    ranks = load_tiktoken_bpe(str(vocabulary_file()))
    reference = tiktoken.Encoding("qwen", pat_str=PRETOKENIZE_REGEX, mergeable_ranks=ranks, special_tokens={})
    pages = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
    for text in [*TEXTS, *pages]:
        ids = tokenizer.encode(text)
        assert ids == reference.encode_ordinary(unicodedata.normalize("NFC", text))
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_special_tokens_have_the_ids_of_qwen(tokenizer: PreTrainedTokenizerFast) -> None:
    # As in the config.json of Qwen3-VL-4B-Instruct, and in its tokenizer's list of added tokens.
    known = {"<|endoftext|>": 151643, "<|im_end|>": 151645, "<|vision_start|>": 151652, "<|vision_end|>": 151653}
    known |= {"<|image_pad|>": 151655, "<|video_pad|>": 151656, "<tool_call>": 151657, "</think>": 151668}
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in known} == known
    assert len(tokenizer) == 151669
    assert tokenizer.decode(tokenizer.encode("<tool_call>x<|im_end|>"), skip_special_tokens=True) == "<tool_call>x"


def test_the_command_makes_a_base_that_transformers_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "base"
    assert main(["base", "untrained", "--out", str(out)]) == 0
    line = f"base: {out}, untrained: it answers with random tokens; for a recipe: base.name={out}\n"
    assert capsys.readouterr().out == line
    model, processor = Qwen3VLForConditionalGeneration.from_pretrained(out), Qwen3VLProcessor.from_pretrained(out)
    assert model.lm_head.weight.shape[0] == ROWS
    config = model.config
    assert (config.image_token_id, config.vision_end_token_id) == (151655, 151653)
    # Qwen's own template, which TRL keeps a copy of.
    template = Path(trl.__file__).with_name("chat_templates") / "qwen3_vl.jinja"
    assert processor.chat_template == template.read_text()
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    prompt = processor.apply_chat_template(messages, tools=[WEATHER], add_generation_prompt=True)
    assert '<tools>\n{"type": "function", "function": {"name": "weather"' in prompt
    ends = "<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.endswith(ends)
    assert main(["base", "untrained", "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"coevo base: {out}: exists; name a new folder\n"


def test_a_missing_vocabulary_is_told_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["base", "untrained", "--out", str(tmp_path / "base")]) == 2
    line = "coevo base: the vocabulary of Qwen comes with dashscope: pip install 'coevo[qwen-vocabulary]'\n"
    assert capsys.readouterr().err == line
    assert list(tmp_path.iterdir()) == []
