"""The learning rate of a step: linear warm-up, then a half cosine (arXiv 1608.03983).

In: a step and the recipe's rates; out: a number.  Pure.
"""

from __future__ import annotations

import math

from penstock.config.recipe import TrainingRecipe


def learning_rate(step: int, recipe: TrainingRecipe) -> float:
    """Rate of update ``step`` (from 0): its peak after ``warmup_steps``, ``final_learning_rate_share`` at the end."""
    peak = recipe.learning_rate
    if step < recipe.warmup_steps:
        return peak * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    low = peak * recipe.final_learning_rate_share
    return low + (peak - low) * 0.5 * (1.0 + math.cos(math.pi * done))
