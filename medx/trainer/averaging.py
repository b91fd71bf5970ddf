"""Averages of iterates: post-processing of released weights, so they cost no budget."""

import torch


def average(previous: dict[str, torch.Tensor], new: dict[str, torch.Tensor], decay: float) -> dict[str, torch.Tensor]:
    """``decay * previous + (1 - decay) * new`` for every name of ``new`` (Polyak and Juditsky 1992); pure."""
    return {name: torch.lerp(value, previous[name].to(value), decay) for name, value in new.items()}
