"""How the learning rate moves over the steps of a run."""

import math
from typing import Literal

ScheduleName = Literal["constant", "cosine", "linear"]


def learning_rate_factor(schedule: ScheduleName, step: int, total_steps: int, warmup_steps: int) -> float:
    """What the rate of ``step`` (from 0 to ``total_steps`` - 1) is multiplied by, 0 < factor <= 1.

    It rises linearly over ``warmup_steps`` (Goyal et al. 2017), then stays, or falls linearly or along half a
    cosine towards 0 at ``total_steps`` (Loshchilov and Hutter 2017, without restarts).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
