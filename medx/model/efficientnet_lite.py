"""EfficientNet-Lite0 (Tan and Le 2019, without squeeze and excitation), as its published weights name its layers."""

import math

import torch
from torch import nn
from torch.nn import functional

# Repeats, kernel, stride of the first, expansion, channels.
BLOCKS = (
    *((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)),
    *((3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)),
)
STEM, HEAD, CLASSES = 32, 1280, 1000
EPSILON = 1e-3  # of BatchNorm, as in training


class SameConv2d(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow does: at a stride of 2 one more below and to the right."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inner, outer, kernel, stride, groups=groups, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``[n, c, h, w]`` to ``[n, outer, ceil(h / stride), ceil(w / stride)]``."""
        pads: list[int] = []
        for size in reversed(input.shape[-2:]):
            total = max((math.ceil(size / self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(functional.pad(input, pads) if any(pads) else input)


class Block(nn.Module):
    """An inverted bottleneck: widened, filtered channel by channel, narrowed, and added where the shape is kept."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inner * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and inner == outer
        if self.expands:
            self.expand_conv, self.bn0 = SameConv2d(inner, wide, 1), nn.BatchNorm2d(wide, EPSILON)
        self.depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide)
        self.bn1 = nn.BatchNorm2d(wide, EPSILON)
        self.project_conv, self.bn2 = SameConv2d(wide, outer, 1), nn.BatchNorm2d(outer, EPSILON)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """``[n, inner, h, w]`` to ``[n, outer, h / stride, w / stride]``."""
        x = functional.relu6(self.bn0(self.expand_conv(inputs))) if self.expands else inputs
        x = functional.relu6(self.bn1(self.depthwise_conv(x)))
        x = self.bn2(self.project_conv(x))
        return x + inputs if self.adds else x


class EfficientNetLite0(nn.Module):
    """Images ``[n, 3, h, w]`` in -1..1 to the outputs ``[n, 1000]`` of ImageNet's classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = SameConv2d(3, STEM, 3, 2), nn.BatchNorm2d(STEM, EPSILON)
        blocks, width = [], STEM
        for repeats, kernel, stride, expansion, channels in BLOCKS:
            for number in range(repeats):
                blocks.append(Block(width, channels, kernel, stride if number == 0 else 1, expansion))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.conv_head, self.bn1 = SameConv2d(width, HEAD, 1), nn.BatchNorm2d(HEAD, EPSILON)
        self.fc = nn.Linear(HEAD, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[n, 3, h, w]`` to ``[n, 1000]``."""
        x = functional.relu6(self.bn0(self.conv_stem(images)))
        x = functional.relu6(self.bn1(self.conv_head(self.blocks(x))))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))
