"""Similarity, clusters and overlap beside their peers on the CPU, one thread: MONAI, scikit-learn and plain torch.

    python benchmarks/measures.py
    python benchmarks/measures.py --only lncc-3d kmeans

Methods of a row work on the same images, in turn; the row also tells how far their results are apart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import machine, publish
from kernels import Method, seconds, threaded
from monai.losses import GlobalMutualInformationLoss, LocalNormalizedCrossCorrelationLoss
from monai.metrics import compute_dice
from sklearn.cluster import KMeans
from torch import Tensor

from regenv.ops import overlap, similarity
from regenv.ops.kmeans import kmeans

RESULTS = Path(__file__).parent / "results"
WINDOW, BINS, CLASSES, CLUSTERS = 9, 32, tuple(range(1, 9)), 3
Row = tuple[dict[str, Method], Callable[[dict[str, Any]], dict[str, float]]]
"""Methods, and how far the others' results are from ours."""


def pair(shape: tuple[int, ...], lanes: int = 1) -> tuple[Tensor, Tensor]:
    """Two correlated smooth images (lanes, 1, *shape) in [0, 1]; the second requires gradients."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand((2, lanes, 1, *(max(n // 8, 2) for n in shape)), generator=draw)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    fixed, other = (F.interpolate(each, size=shape, mode=mode, align_corners=True) for each in coarse)
    return fixed, (0.7 * fixed + 0.3 * other).requires_grad_()


def with_gradient(measure: Callable[[Tensor, Tensor], Tensor], fixed: Tensor, moving: Tensor) -> Method:
    def run() -> Tensor:
        value = measure(fixed, moving)
        torch.autograd.grad(value.sum(), moving)
        return value.detach()
    return run


def conv_lncc(fixed: Tensor, moving: Tensor) -> Tensor:
    """As the code of many papers computes it: sums by a full convolution with ones, zeros beyond the border."""
    ndim = fixed.ndim - 2
    kernel = torch.ones(1, 1, *(WINDOW,) * ndim)
    conv = F.conv2d if ndim == 2 else F.conv3d
    a, b, aa, bb, ab = (conv(each, kernel, padding=WINDOW // 2) / kernel.numel()
                        for each in (fixed, moving, fixed * fixed, moving * moving, fixed * moving))
    return ((ab - a * b) ** 2 / ((aa - a * a) * (bb - b * b) + 1e-5)).mean()


def far(results: dict[str, Any]) -> dict[str, float]:
    """Differences of scores."""
    return {name: float(abs(value - results["regenv"]).max()) for name, value in results.items() if name != "regenv"}


def lncc(shape: tuple[int, ...]) -> Row:
    fixed, moving = pair(shape)
    theirs = LocalNormalizedCrossCorrelationLoss(spatial_dims=len(shape), kernel_size=WINDOW)
    measures = {"regenv": lambda a, b: similarity.lncc(a, b, window=WINDOW), "full convolution": conv_lncc,
                "MONAI": lambda a, b: -theirs(b, a)}
    return {name: with_gradient(measure, fixed, moving) for name, measure in measures.items()}, far


def mutual(shape: tuple[int, ...]) -> Row:
    fixed, moving = pair(shape)
    theirs = GlobalMutualInformationLoss(kernel_type="b-spline", num_bins=BINS)
    measures = {"regenv": lambda a, b: similarity.mi(a, b, bins=BINS), "MONAI": lambda a, b: -theirs(b, a)}
    return {name: with_gradient(measure, fixed, moving) for name, measure in measures.items()}, far


def clusters(shape: tuple[int, ...]) -> Row:
    """Apart: the share of voxels in another cluster."""
    image = pair(shape)[0]

    def theirs() -> Tensor:
        found = KMeans(CLUSTERS, n_init=1, random_state=0).fit(image.flatten()[:, None].numpy())
        rank = np.argsort(np.argsort(found.cluster_centers_[:, 0]))
        return torch.from_numpy(rank[found.labels_] + 1).view_as(image)
    return ({"regenv": lambda: kmeans(image, CLUSTERS)[0], "scikit-learn": theirs},
            lambda results: {"scikit-learn": float((results["regenv"] != results["scikit-learn"]).float().mean())})


def dice(shape: tuple[int, ...]) -> Row:
    a, b = ((len(CLASSES) * image.detach()).round().to(torch.int16) for image in pair(shape, 4))

    def one_hot(labels: Tensor) -> Tensor:
        return torch.stack([labels[:, 0] == c for c in CLASSES], 1)

    def plain() -> Tensor:
        x, y = one_hot(a).flatten(2), one_hot(b).flatten(2)
        return 2 * (x & y).sum(-1) / (x.sum(-1) + y.sum(-1))
    return ({"regenv": lambda: overlap.dice(a, b, CLASSES), "one-hot torch": plain,
             "MONAI": lambda: compute_dice(one_hot(a).float(), one_hot(b).float())}, lambda results: {
                 name: float((value - results["regenv"]).nan_to_num().abs().max())
                 for name, value in results.items() if name != "regenv"})


ROWS: dict[str, Callable[[], Row]] = {
    "lncc-2d": lambda: lncc((128, 128)), "lncc-3d": lambda: lncc((64, 64, 64)),
    "lncc-3d-96": lambda: lncc((96, 96, 96)),
    "mi-3d": lambda: mutual((64, 64, 64)), "kmeans": lambda: clusters((128, 128, 128)),
    "dice-4-lanes": lambda: dice((96, 96, 96))}


def page(command: str, rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"# Similarity, clusters and overlap\n\nMade by `{command}` on {date.today()}, {machine()}, one thread. "
             f"LNCC (window {WINDOW}) and mutual information with their gradients; K-means of {CLUSTERS} clusters; "
             f"Dice of {len(CLASSES)} labels. Apart: the largest difference of scores, for K-means the share of voxels "
             "in another cluster; a peer's borders and bins differ, so its scores do.\n",
             "| row | method | ms | of ours | apart |", "| --- | --- | ---: | ---: | ---: |"]
    for row in rows:
        for who, taken in row["seconds"].items():
            apart = f"{row['apart'][who]:.2g}" if who in row["apart"] else ""
            lines.append(f"| {row['row']} | {who} | {1e3 * taken:.3g} | {taken / row['seconds']['regenv']:.1f} x | "
                         f"{apart} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "measures")
    arguments = parser.parse_args(typed)
    threaded(1)
    rows = []
    for name in arguments.only:
        methods, apart = ROWS[name]()
        rows.append({"row": name, "apart": apart({who: method() for who, method in methods.items()}),
                     "seconds": seconds(methods, arguments.repeats)})
        print(name, rows[-1], flush=True)
    command = " ".join(["python benchmarks/measures.py", *typed])
    publish(arguments.out, page(command, rows), {"machine": machine(), "command": command, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
