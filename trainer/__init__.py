"""The method: plans, workers, GRPO and mutual distillation of LoRA branches."""
