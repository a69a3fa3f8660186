"""What the benchmarks' figures share."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from regenv.data.io import atomic


def keep(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, and close it."""
    figure.tight_layout()
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
