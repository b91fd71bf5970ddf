"""The rule for ``nn.Conv2d``: per-record gradients by patches, or their norms alone by Gram matrices."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from medx.trainer.gradients.layer_rules import Call, Contribution, Rows, gram_is_cheaper, materialised
from medx.trainer.gradients.record_loss import gram_norms, gram_rounding, squared_norms, sum_of_rows

Tensor = torch.Tensor
convolution_backward = torch.ops.aten.convolution_backward.default
PATCH_BYTES = 2**21  # of one block of patches, which should stay in the cache
FEW_CHANNELS = 8  # below them, rows of pixels are the longer runs to copy


def conv2d(call: Call, gradient: Tensor) -> list[Contribution | Rows]:
    """``nn.Conv2d`` with zero padding and one group, on ``[batch, channels, height, width]``."""
    module = call.module
    assert isinstance(module, nn.Conv2d)
    contributions: list[Contribution | Rows] = []
    if module.weight.requires_grad:
        contributions.append(_weight(module, call.inputs, gradient))
    if module.bias is not None and module.bias.requires_grad:
        contributions.append(materialised(module.bias, gradient.sum((2, 3))))
    return contributions


def _weight(module: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> Contribution:
    weight = module.weight
    by_patches, by_pixels = _gram_costs(module, inputs, gradient)
    if not gram_is_cheaper(min(by_patches, by_pixels), weight.numel()):
        flat, arrange = _per_record(module, inputs, gradient)
        return Contribution(weight, squared_norms(flat), lambda factors: arrange(sum_of_rows(factors, flat)))

    def weighted_sum(factors: Tensor) -> Tensor:
        # In float64: what cancels within a record is not bounded by the norm that it is clipped by.
        scaled = gradient.double() * factors.view(-1, 1, 1, 1)
        return _weight_gradient(module, inputs.double(), scaled, weight.double()).to(weight.dtype)

    gram = _patch_gram if by_patches <= by_pixels else _pixel_gram
    return Contribution(weight, gram(module, inputs, gradient), weighted_sum)


def _gram_costs(module: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> tuple[int, int]:
    """Multiply-adds a record of the Gram matrices: of patches, and of pixels."""
    channels, height, width = inputs.shape[1:]
    (top, left), (down, across) = _pair(module.padding), module.kernel_size
    pixels = (height + 2 * top) * (width + 2 * left)
    positions = gradient.shape[2] * gradient.shape[3]
    outputs = positions**2 * gradient.shape[1]
    return positions**2 * channels * down * across + outputs, pixels**2 * channels + outputs


def _per_record(module: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """``[batch, weights]`` in an order of its own, and what puts a sum of such rows into the weight's shape."""
    outputs, channels, height, width = module.weight.shape
    if channels < FEW_CHANNELS:
        shape = (channels, height, width, outputs)
        flat = _by_patches(module, inputs, gradient, positions_last=True)
        return flat, lambda total: total.view(shape).permute(3, 0, 1, 2).contiguous()
    if inputs.device.type == "cpu" and gradient[0, 0].numel() > 2 * outputs:
        return _by_groups(module, inputs, gradient), lambda total: total.view(module.weight.shape)
    shape = (outputs, height, width, channels)
    flat = _by_patches(module, inputs, gradient, positions_last=False)
    return flat, lambda total: total.view(shape).permute(0, 3, 1, 2).contiguous()


def _by_groups(module: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> Tensor:
    """In the weight's order, by a convolution with a group for each record: fastest on large images.

    Twice as many positions as output channels is where it overtakes patches on one CPU core: putting every record's
    gradient into plain order, which patches do not need, is a cost of weights alone.
    """
    batch, weight = len(inputs), module.weight
    many = weight.new_empty(batch * len(weight), *weight.shape[1:], dtype=inputs.dtype)  # only its shape is read
    joined, rows = (tensor.reshape(1, -1, *tensor.shape[2:]) for tensor in (inputs, gradient))
    return _weight_gradient(module, joined, rows, many, groups=batch).view(batch, -1)


def _by_patches(module: nn.Conv2d, inputs: Tensor, gradient: Tensor, *, positions_last: bool) -> Tensor:
    """In the patches' order; with ``positions_last`` the output channels come after the weights of one."""
    rows, weights = gradient.flatten(2), module.weight[0].numel()
    sizes = (weights, rows.shape[1]) if positions_last else (rows.shape[1], weights)
    per_record = rows.new_empty(len(rows), *sizes)
    for block, patches in _patch_blocks(module, inputs, gradient):
        factors = (patches.mT, rows[block].mT) if positions_last else (rows[block], patches)
        torch.bmm(*factors, out=per_record[block])
    return per_record.flatten(1)


def _patch_gram(module: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> Tensor:
    """Squared norms ``[batch]`` without the gradients: ``sum_ts <g_t, g_s> <patch_t, patch_s>``.

    In float64: the gradients that come out of a normalisation layer nearly cancel over positions, and squares lose
    twice the digits; ``gram_rounding`` is added for those that float64 loses.
    """
    rows = gradient.flatten(2).double()
    gram = rows.mT @ rows
    squared, sizes = gram.new_empty(len(gram)), gram.new_empty(gram.shape[:2])
    for block, patches in _patch_blocks(module, inputs.double(), gradient):
        products = patches @ patches.mT
        sizes[block] = products.diagonal(dim1=1, dim2=2)
        torch.sum(products.mul_(gram[block]), (1, 2), out=squared[block])
    outputs, features = len(module.weight), module.weight[0].numel()
    return squared.clamp_(min=0) + gram_rounding(sizes, gram.diagonal(dim1=1, dim2=2), outputs, features)


def _pixel_gram(module: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> Tensor:
    """As ``_patch_gram``, with the patches' Gram matrix as a sum of shifted copies of the padded pixels' one.

    Moving both pixels of a pair by one place moves the flattened matrix by one row and one column.
    """
    batch, _, height, width = inputs.shape
    (top, left), (out_height, out_width) = _pair(module.padding), gradient.shape[2:]
    tall, wide = height + 2 * top, width + 2 * left
    pixels = inputs.flatten(2).double()
    padded = pixels.new_zeros(batch, tall, wide, tall, wide)  # the border is zero, and so are its products
    rows, columns = slice(top, top + height), slice(left, left + width)
    padded[:, rows, columns, rows, columns] = (pixels.mT @ pixels).view(batch, height, width, height, width)
    gram, step = padded.view(batch, -1), tall * wide + 1
    (down, across), (dilation_down, dilation_across) = module.kernel_size, module.dilation
    shifted = _shifted_sum(_shifted_sum(gram, across, dilation_across * step), down, dilation_down * step * wide)
    side = [(size, stride) for size, stride in zip((out_height, out_width), module.stride, strict=True)]
    strides = (wide * side[0][1], side[1][1])
    patches = shifted.as_strided(
        (batch, out_height, out_width, out_height, out_width),
        (shifted.stride(0), *(tall * wide * stride for stride in strides), *strides),
    )
    gradients = gradient.flatten(2).double()
    pairs, products = patches.flatten(3).flatten(1, 2), gradients.mT @ gradients
    return gram_norms(pairs, products, len(module.weight), module.weight[0].numel())


def _shifted_sum(rows: Tensor, count: int, step: int) -> Tensor:
    """``rows[:, i] + rows[:, i + step] + ...``, of ``count`` terms."""
    length = rows.shape[1] - (count - 1) * step
    if count == 1:
        return rows
    total = rows[:, :length] + rows[:, step : step + length]
    for term in range(2, count):
        total += rows[:, term * step : term * step + length]
    return total


def _patch_blocks(module: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Records and their patches ``[records, positions, weights]``, in a buffer that the next block overwrites."""
    (batch, channels, height, width), (top, left) = inputs.shape, _pair(module.padding)
    (down, across), (out_height, out_width) = module.kernel_size, gradient.shape[2:]
    positions, weights = out_height * out_width, channels * down * across
    size = min(batch, max(1, PATCH_BYTES // (positions * weights * inputs.element_size())))
    buffer = inputs.new_empty(size, positions * weights)
    if channels < FEW_CHANNELS:
        padded = inputs.new_zeros(size, channels, height + 2 * top, width + 2 * left)
        windows = _windows(module, padded).permute(0, 1, 4, 5, 2, 3)
        flat = buffer.view(size, weights, positions).mT
    else:
        padded = inputs.new_zeros(size, height + 2 * top, width + 2 * left, channels).permute(0, 3, 1, 2)
        windows = _windows(module, padded).permute(0, 2, 3, 4, 5, 1)
        flat = buffer.view(size, positions, weights)
    inner, copied = padded[:, :, top : top + height, left : left + width], buffer.view(windows.shape)
    for start in range(0, batch, size):
        block = slice(start, min(start + size, batch))
        count = block.stop - start
        inner[:count].copy_(inputs[block])
        copied[:count].copy_(windows[:count])
        yield block, flat[:count]


def _windows(module: nn.Conv2d, padded: Tensor) -> Tensor:
    """View ``[records, channels, out height, out width, kernel height, kernel width]``."""
    (height, width), (down, right), (along, across) = module.kernel_size, module.stride, module.dilation
    windows = padded.unfold(2, along * (height - 1) + 1, down).unfold(3, across * (width - 1) + 1, right)
    return windows[..., ::along, ::across]


def _weight_gradient(
    module: nn.Conv2d, inputs: Tensor, gradient: Tensor, weight: Tensor | None = None, groups: int = 1
) -> Tensor:
    weight = module.weight if weight is None else weight
    result: Tensor = convolution_backward(
        gradient, inputs, weight, None, module.stride, _pair(module.padding), module.dilation, False, [0, 0], groups,
        [False, True, False],
    )[1]  # fmt: skip
    return result


def _pair(padding: tuple[int | str, ...] | str) -> tuple[int, int]:
    height, width = (int(size) for size in padding)
    return height, width
