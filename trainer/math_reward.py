"""The former place of `trainer.rewards.mathematics`; goes away with the last import of it."""

from trainer.rewards.mathematics import math_reward

__all__ = ["math_reward"]
