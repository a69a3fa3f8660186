"""What the benchmarks share."""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from regenv.atomic import atomic

DRAWS = 10_000  # of the bootstrap
ABOVE = 3.0  # times the fastest, from where overhead is small


def keep(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, and close it."""
    figure.tight_layout()
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def write(out: Path, page: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a page, OUT.md, and its numbers, OUT.csv."""
    with atomic(out.with_suffix(".md")) as temporary:
        temporary.write_text(page)
    with atomic(out.with_suffix(".csv")) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def made_by(script: str, typed: Sequence[str]) -> str:
    """The sentence that says how a page was made."""
    return (f"Made by `{' '.join([f'python benchmarks/{script}', *typed])}` on {date.today()}, {platform.machine()}, "
            f"1 thread, torch {torch.__version__}")


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and its 95 % percentile bootstrap interval over the pairs."""
    draws = np.random.default_rng(0).choice(values, (DRAWS, len(values))).mean(1)
    return float(values.mean()), *(float(end) for end in np.percentile(draws, (2.5, 97.5)))


def publish(out: Path, page: str, numbers: dict[str, Any]) -> None:
    """Write a page and its numbers to ``out`` with the suffixes .md and .json, each whole or not at all."""
    with atomic(out.with_suffix(".md")) as temporary:
        temporary.write_text(page)
    with atomic(out.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(numbers, indent=1) + "\n")


def machine() -> str:
    """What numbers were made on."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")][:1]
    graphics = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([platform.machine(), f"{os.cpu_count()} CPUs", *models, *graphics, f"torch {torch.__version__}"])


def power_law(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float, int]:
    """Exponent and factor of seconds over sizes, by least squares over the logarithms of the last points, and their
    number: those that take at least ``ABOVE`` times as long as the fastest, and no fewer than two."""
    used = max(2, sum(each >= ABOVE * min(seconds) for each in seconds))
    power, offset = np.polyfit(np.log(sizes[-used:]), np.log(seconds[-used:]), 1)
    return float(power), float(np.exp(offset)), used
