"""Cotangents: the weights of the outputs, so that one real number is differentiated."""

from collections.abc import Sequence

import numpy as np

from jaxgrad._numerics import rms


def choose_cotangents(
    outputs: Sequence[np.ndarray], holomorphic: bool, seed: int
) -> tuple[list[np.ndarray], float]:
    """Return 1 for a scalar function, else normal weights such that all outputs count equally.

    The second result is the sum of the sizes of the weighted outputs: rounding is relative to it.
    """
    generator = np.random.default_rng(seed)
    if len(outputs) == 1 and outputs[0].shape == ():
        if np.iscomplexobj(outputs[0]) and not holomorphic:
            raise TypeError(
                "f must return a real number, got a complex one; pass holomorphic=True, or take "
                "its real part or size"
            )
        # With an angle, the real and the imaginary part of a derivative both count.
        angle = np.exp(1j * generator.uniform(0.3, 1.2)) if holomorphic else 1.0
        cotangent = (np.ones(()) * angle).astype(outputs[0].dtype)
        return [cotangent], float(np.abs(outputs[0] * np.asarray(cotangent, complex)))
    cotangents, total = [], 0.0
    for output in outputs:
        draw = generator.standard_normal(output.shape)
        if np.iscomplexobj(output):
            draw = draw + 1j * generator.standard_normal(output.shape)
        size = rms(np.asarray(output, np.complex128).ravel()) or 1.0
        draw = draw / (size * np.sqrt(max(output.size, 1)))
        # An infinite entry has no weight.
        cotangents.append(np.where(np.isfinite(output), draw, 0).astype(output.dtype))
        counted = np.where(cotangents[-1] == 0, 0, output)
        total += float(np.sum(np.abs(counted * np.asarray(cotangents[-1], complex))))
    return cotangents, total
