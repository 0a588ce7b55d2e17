"""Catalogues of any size, made from a real one."""

from typing import Final

import numpy as np

from core.vectors.arrays import Floats

ANGLE: Final = 0.4
"""By which a copy of the real rows is turned, in radians."""
NOISE: Final = 0.15
"""Length of the noise that is added to a row of a copy, where the row's is 1."""


def grown(rows: Floats, count: int, seed: int = 23) -> Floats:
    """float32 (count, d): the real rows, and above their number copies of them.

    Each copy is turned as a whole by a rotation of its own, which keeps the distances within it,
    and each of its rows is moved by noise of its own: rows have rows of other copies near them, as
    products have variants, and none of them is a near copy.

    Args:
        rows: float32 (n, d), the real ones; the first `count` of them where that is enough.
        count: of rows that are made.
        seed: of rotations and noise.
    """
    real = rows.shape[0]
    made = np.empty((count, rows.shape[1]), dtype=np.float32)
    made[: min(count, real)] = rows[:count]
    random = np.random.default_rng(seed)
    for start in range(real, count, real):
        copied = rows[: min(real, count - start)]
        turned = copied @ rotation(rows.shape[1], random)
        noise = random.standard_normal(turned.shape, dtype=np.float32)
        lengths = np.linalg.norm(turned, axis=1, keepdims=True)
        noise *= np.float32(NOISE) * lengths / np.sqrt(np.float32(rows.shape[1]))
        made[start : start + len(copied)] = turned + noise
    return made


def rotation(dimension: int, random: np.random.Generator) -> Floats:
    """float32 (d, d): a rotation by `ANGLE` in each of d / 2 planes drawn at random."""
    basis, _ = np.linalg.qr(random.standard_normal((dimension, dimension)))
    turn = np.eye(dimension)
    even = np.arange(0, dimension - 1, 2)
    turn[even, even] = turn[even + 1, even + 1] = np.cos(ANGLE)
    turn[even, even + 1], turn[even + 1, even] = -np.sin(ANGLE), np.sin(ANGLE)
    turned: Floats = (basis @ turn @ basis.T).astype(np.float32)
    return turned


def ids_of(count: int) -> list[str]:
    """Product ids, in ascending order."""
    return [f"product-{number:08d}" for number in range(count)]
