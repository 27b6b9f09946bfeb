"""RMSNorm in float64 numpy: the layers, the latent row and the head all use this one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def rms_norm(x: NDArray[Any], weight: NDArray[Any], eps: float) -> NDArray[np.float64]:
    """Scale each row to x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467, eq. 4).

    x (T, n), weight (n,) -> (T, n)
    """
    mean_square = np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True)
    normed: NDArray[np.float64] = x / np.sqrt(mean_square + eps) * weight
    return normed
