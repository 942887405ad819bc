"""Adapters of the miniature as a step of TRL's own trainer makes and saves them."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoTokenizer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from adapters.base import locate

ROW = {
    "prompt": [{"role": "user", "content": "37+2*4?"}],
    "completion": [{"role": "assistant", "content": "plain2*4=8;37+8=45"}],
}


def save_by_trl(folder: Path, **settings: Any) -> Path:
    """One step, large enough that the adapter is no zero."""
    model = AutoModelForImageTextToText.from_pretrained(locate("miniature"), dtype=torch.float32)
    config = SFTConfig(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=2,
        learning_rate=0.05,
        seed=0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([ROW] * 4),
        processing_class=AutoTokenizer.from_pretrained(locate("miniature")),
        peft_config=LoraConfig(r=8, lora_alpha=16, **settings),
    )
    trainer.train()
    trainer.save_model(str(folder))
    return folder
