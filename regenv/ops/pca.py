"""Principal component analysis of rows, by the singular value decomposition."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDING = 10.0  # singular values below this many rounding errors of the rows count as zero


@dataclass(frozen=True, eq=False)
class PCA:
    """Rows as their mean plus a weighted sum of orthonormal modes.

    Attributes:
        mean: (F,).
        modes: (K, F), orthonormal, the largest deviation first; in each the loading of largest magnitude is positive.
        deviations: (K,), standard deviations of the amplitudes over the rows (divisor N - 1).
    """

    mean: Tensor
    modes: Tensor
    deviations: Tensor

    def transform(self, rows: Tensor) -> Tensor:
        """Amplitudes (N, K) of rows (N, F): their projection on the modes."""
        return (rows - self.mean) @ self.modes.T


def fit(rows: Tensor, count: int) -> PCA:
    """The ``count`` directions in which rows (N, F) vary most; fewer rows than features are fine.

    Computed in float64, returned in the rows' dtype.

    Raises:
        ValueError: rows are not a finite matrix, or vary in fewer than ``count`` directions.
    """
    if rows.ndim != 2 or not rows.isfinite().all():
        raise ValueError(f"pca: rows is {tuple(rows.shape)}; it must be a finite matrix (N, F).")
    exact = rows.to(torch.float64)
    mean = exact.mean(0)
    _, singular, modes = torch.linalg.svd(exact - mean, full_matrices=False)
    noise = _ROUNDING * torch.finfo(rows.dtype).eps * torch.linalg.vector_norm(exact)
    rank = min(int((singular > noise).sum()), len(rows) - 1)
    if not 1 <= count <= rank:
        raise ValueError(f"pca: count is {count}, but {len(rows)} rows of {rows.shape[1]} features vary in {rank} "
                         f"directions; ask for 1 to {rank} modes, or give more rows.")
    modes = modes[:count]
    peaks = modes.gather(1, modes.abs().argmax(1, keepdim=True))
    deviations = singular[:count] / (len(rows) - 1) ** 0.5
    return PCA(*(part.to(rows.dtype) for part in (mean, modes * peaks.sign(), deviations)))
