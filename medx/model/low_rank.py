"""Low-rank changes of fixed convolutions: few trained numbers, so little noise, and the whole network moves."""

import torch
from torch import nn

from medx.model.layers import initialise
from medx.randomness import derive_seed


class LowRankConv2d(nn.Module):
    """A fixed convolution plus a trained change of low rank (LoRA, Hu et al. 2022): ``fixed(x) + up(down(x))``.

    ``down`` has the fixed one's kernel, stride and padding and ``rank`` channels, ``up`` is 1x1 and starts at zero, so
    that the network begins as it was. Both are plain convolutions, so that every gradient mode knows them.
    """

    def __init__(self, fixed: nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.fixed = fixed.requires_grad_(False)
        self.down = nn.Conv2d(
            fixed.in_channels,
            rank,
            fixed.kernel_size,  # type: ignore[arg-type]
            fixed.stride,  # type: ignore[arg-type]
            fixed.padding,  # type: ignore[arg-type]
            fixed.dilation,  # type: ignore[arg-type]
            bias=False,
        )
        self.up = nn.Conv2d(rank, fixed.out_channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, in, h, w]`` to ``[n, out, ...]``."""
        output: torch.Tensor = self.fixed(x) + self.up(self.down(x))
        return output


def add_low_rank_changes(network: nn.Module, rank: int, seed: int) -> None:
    """Put a LowRankConv2d in the place of every convolution that is larger than such a change of it would be.

    The others, such as a first layer of one channel, stay fixed. What is drawn follows from ``seed`` alone.
    """
    for name, layer in list(network.named_modules()):
        if not isinstance(layer, nn.Conv2d):
            continue
        with torch.device("meta"):
            change = LowRankConv2d(layer, rank)
        if change.down.weight.numel() + change.up.weight.numel() >= layer.weight.numel():
            continue
        initialise(change.down, derive_seed(seed, "low-rank", name))
        initialise(change.up, seed)
        nn.init.zeros_(change.up.weight)
        network.set_submodule(name, change)
