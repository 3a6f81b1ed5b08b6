"""Convolutions, and sums and extremes over windows, of numbers in arbitrary precision."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxgrad.checking._arbitrary_arrays import (
    COMBINE,
    Equation,
    highest,
    lowest,
    nothing,
    product,
    zeros,
)


def _convolution(call: Equation, image: Any, kernel: Any) -> np.ndarray:
    params = call.params
    spec = params["dimension_numbers"]
    image, kernel = image.transpose(spec.lhs_spec), kernel.transpose(spec.rhs_spec)
    image = _padded(call.context, image, params["padding"], params["lhs_dilation"])
    groups, batches = params["feature_group_count"], params["batch_group_count"]
    sizes = [1 + (k - 1) * d for k, d in zip(kernel.shape[2:], params["rhs_dilation"], strict=True)]
    strides = params["window_strides"]
    outs = [
        max((n - s) // stride + 1, 0)
        for n, s, stride in zip(image.shape[2:], sizes, strides, strict=True)
    ]
    features, count = kernel.shape[0], max(groups, batches)
    # Groups of features, or of the batch, each have their share of the kernel's outputs.
    images = np.split(image, count, 1 if groups > 1 else 0) if count > 1 else [image]
    parts = []
    for part, weights in zip(images, np.split(kernel, count, 0), strict=True):
        total = zeros(call.context, (part.shape[0], features // count, *outs))
        # A convolution is a sum over the kernel's places of products over the features.
        for offset in np.ndindex(*kernel.shape[2:]):
            # The window of a place begins there, and its steps are the strides.
            begin = [o * d for o, d in zip(offset, params["rhs_dilation"], strict=True)]
            window = tuple(
                slice(b, b + (n - 1) * s + 1, s)
                for b, n, s in zip(begin, outs, strides, strict=True)
            )
            patch = part[(slice(None), slice(None), *window)]
            flat = patch.reshape(*patch.shape[:2], -1)
            factor = weights[(slice(None), slice(None), *offset)]
            products = product(call, np.broadcast_to(factor, (len(flat), *factor.shape)), flat)
            total = total + products.reshape(total.shape)
        parts.append(total)
    return np.concatenate(parts, 1).transpose(np.argsort(spec.out_spec))


def _padded(context: Any, image: np.ndarray, padding, dilation, fill: Any = None) -> np.ndarray:
    """Return an image `[N, C, ...]` with zeros between and around its elements."""
    fill = context.zero if fill is None else fill
    for axis, ((low, high), step) in enumerate(zip(padding, dilation, strict=True), start=2):
        size = image.shape[axis]
        wide = (size - 1) * step + 1 if size else 0
        shape = list(image.shape)
        shape[axis] = max(low, 0) + wide + max(high, 0)
        result = np.full(shape, fill, object)
        place = [slice(None)] * image.ndim
        place[axis] = slice(max(low, 0), max(low, 0) + wide, step)
        result[tuple(place)] = image
        # Negative padding cuts off elements.
        place[axis] = slice(max(-low, 0), result.shape[axis] - max(-high, 0))
        image = result[tuple(place)]
    return image


def _windows(call: Equation, operand: Any, fill: Any):
    """Yield the index of each window and the places of its elements in the padded operand."""
    params = call.params
    ones = (1,) * operand.ndim
    dilation = params.get("window_dilation", ones)
    base = params.get("base_dilation", ones)
    padded = _padded(call.context, operand[None, None], params["padding"], base, fill)[0, 0]
    sizes = params["window_dimensions"]
    outs = [
        max((n - (k - 1) * d - 1) // s + 1, 0)
        for n, k, d, s in zip(padded.shape, sizes, dilation, params["window_strides"], strict=True)
    ]
    call.spend(int(np.prod(outs, dtype=int) * np.prod(sizes, dtype=int)))

    def windows():
        for index in np.ndindex(*outs):
            corner = [i * s for i, s in zip(index, params["window_strides"], strict=True)]
            ranges = (
                [b + k * d for k in range(n)]
                for b, n, d in zip(corner, sizes, dilation, strict=True)
            )
            yield index, list(itertools.product(*ranges))

    return padded, tuple(outs), windows()


def _reduce_window(combine: str, initial: Callable[[Any], Any]) -> Callable[..., np.ndarray]:
    def reduce(call: Equation, operand: Any) -> np.ndarray:
        start = initial(call.context)
        padded, outs, windows = _windows(call, operand, start)
        result = np.empty(outs, object)
        for index, places in windows:
            result[index] = functools.reduce(COMBINE[combine], (padded[p] for p in places))
        return result

    return reduce


def _select_and_scatter_add(call: Equation, source: Any, operand: Any) -> np.ndarray:
    largest = call.params["select_prim"].name == "ge"
    worst = -call.context.inf if largest else call.context.inf
    padded, _, windows = _windows(call, operand, worst)
    total = zeros(call.context, padded.shape)
    sign = 1 if largest else -1
    for index, places in windows:
        # Of equal elements the first one is chosen.
        chosen = max(places, key=lambda place: sign * padded[place])
        total[chosen] = total[chosen] + source[index]
    # What was added in the padding is cut off.
    inside = tuple(
        slice(low, low + n)
        for (low, _), n in zip(call.params["padding"], operand.shape, strict=True)
    )
    return total[inside]


WINDOW_OPERATIONS: dict[str, Callable[..., Any]] = {
    "conv_general_dilated": _convolution,
    "reduce_window_sum": _reduce_window("add", nothing),
    "reduce_window_max": _reduce_window("max", lowest),
    "reduce_window_min": _reduce_window("min", highest),
    "select_and_scatter_add": _select_and_scatter_add,
}
