"""Warps and field compositions beside their peers: torch, SimpleITK, SciPy and, where installed, MONAI and kornia.

    python benchmarks/kernels.py                             # all sizes, on one thread and on all
    python benchmarks/kernels.py --sizes 64x64x64 --lanes 1  # one row per warp

All methods of a row do the same work on the same numbers, in turn, so other load on the machine does not change their
ratios. Where there is a GPU, its kernels are measured too, beside torch, MONAI and kornia on it.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import os
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import scipy.ndimage
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from common import ABOVE, keep, machine, power_law, publish
from torch import Tensor

from regenv.ops import sampling, warp
from regenv.ops.kernels import reference

RESULTS = Path(__file__).parent / "results"
SIZES = ("64x64", "128x128", "256x256", "512x512", "32x32x32", "64x64x64", "128x128x128", "192x192x192")
LANES = (1, 16, 256)
MOST = 1 << 24                      # voxels of a batch; larger batches are left out
PEERS_MOST = 1 << 23                # voxels of a batch, for peers that take one image after the other
COPIED = 1 << 28                    # bytes, by which the bandwidth is measured
GPU_SIZES = (("64x64x64", 64), ("256x256x256", 1), ("512x512", 64))  # and lanes
Method = Callable[[], Any]


def problem(shape: tuple[int, ...], lanes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (lanes, 1, *shape), affine maps of voxels (lanes, D+1, D+1) and smooth fields (lanes, D, *shape)."""
    draw, ndim = torch.Generator().manual_seed(0), len(shape)
    image = torch.rand((lanes, 1, *shape), generator=draw)
    turn = torch.eye(ndim)
    turn[-2:, -2:] = torch.tensor([[math.cos(0.2), -math.sin(0.2)], [math.sin(0.2), math.cos(0.2)]])
    turn[0, -1] += 0.05
    middle = torch.tensor(shape, dtype=torch.float32) / 2
    matrix = torch.eye(ndim + 1)
    matrix[:ndim, :ndim], matrix[:ndim, ndim] = turn, middle - turn @ middle + 1.3
    coarse = torch.randn((lanes, ndim, *(max(n // 16, 2) for n in shape)), generator=draw)
    field = 4 * F.interpolate(coarse, size=shape, mode="bilinear" if ndim == 2 else "trilinear", align_corners=True)
    return image, matrix.expand(lanes, -1, -1).contiguous(), field.contiguous()


def as_image(array: np.ndarray) -> sitk.Image:
    return sitk.GetImageFromArray(array)


def as_transform(matrix: Tensor) -> sitk.AffineTransform:
    """The same map of points in SimpleITK's order of axes."""
    ndim = len(matrix) - 1
    transform = sitk.AffineTransform(ndim)
    transform.SetMatrix(matrix[:ndim, :ndim].flip(0, 1).double().flatten().tolist())
    transform.SetTranslation(matrix[:ndim, ndim].flip(0).double().tolist())
    return transform


def affine(image: Tensor, matrix: Tensor, field: Tensor) -> dict[str, Method]:
    shape = tuple(image.shape[2:])
    sizes = torch.tensor(shape, dtype=torch.float32)
    scale, ndim = 2 / (sizes - 1), len(shape)
    norm, back = torch.eye(ndim + 1), torch.eye(ndim + 1)  # of voxels to +-1 and back
    norm[:ndim, :ndim], norm[:ndim, ndim] = torch.diag(scale), -1
    back[:ndim, :ndim], back[:ndim, ndim] = torch.diag(1 / scale), 1 / scale
    theta = (norm @ matrix @ back)[:, :ndim].flip(1)
    theta = torch.cat([theta[..., :ndim].flip(2), theta[..., ndim:]], 2)
    theta, size = theta.to(image.device), tuple(shape)
    found: dict[str, Method] = {
        "regenv": lambda: warp.warp_affine(image, matrix, shape),
        "torch affine_grid": lambda: F.grid_sample(image, F.affine_grid(theta, list(image.shape), align_corners=True),
                                                   align_corners=True),
        "torch broadcast grid": lambda: sampling.sample(image, sampling.affine_coordinates(matrix, shape))}
    if importlib.util.find_spec("kornia"):
        from kornia.geometry import transform as kornia
        push = torch.linalg.inv(matrix)[:, :ndim].flip(1)
        push = torch.cat([push[..., :ndim].flip(2), push[..., ndim:]], 2)
        theirs = kornia.warp_affine if ndim == 2 else kornia.warp_affine3d
        found["kornia"] = lambda: theirs(image, push, size, align_corners=True)
    if image.numel() <= PEERS_MOST and image.device.type == "cpu":
        arrays = image[:, 0].numpy()
        images, transform = [as_image(array) for array in arrays], as_transform(matrix[0])
        linear, offset = matrix[0, :ndim, :ndim].numpy(), matrix[0, :ndim, ndim].numpy()
        found["SimpleITK"] = lambda: [sitk.Resample(one, one, transform, sitk.sitkLinear, 0.0) for one in images]
        found["SciPy"] = lambda: [scipy.ndimage.affine_transform(one, linear, offset, order=1) for one in arrays]
    return found


def dense(image: Tensor, matrix: Tensor, field: Tensor) -> dict[str, Method]:
    shape, ndim = tuple(image.shape[2:]), image.ndim - 2
    found: dict[str, Method] = {
        "regenv": lambda: warp.warp_dense(image, field),
        "torch broadcast grid": lambda: sampling.sample(
            image, (sampling.identity(shape, image.device) + field).movedim(1, -1))}
    if image.numel() <= PEERS_MOST and image.device.type == "cpu":
        arrays, images = image[:, 0].numpy(), [as_image(array) for array in image[:, 0].numpy()]
        transforms = [sitk.DisplacementFieldTransform(sitk.GetImageFromArray(
            each.flip(0).movedim(0, -1).double().numpy(), isVector=True)) for each in field]
        points = (sampling.identity(shape) + field).numpy()
        found["SimpleITK"] = lambda: [sitk.Resample(one, one, transform, sitk.sitkLinear, 0.0)
                                      for one, transform in zip(images, transforms, strict=True)]
        found["SciPy"] = lambda: [scipy.ndimage.map_coordinates(one, where, order=1)
                                  for one, where in zip(arrays, points, strict=True)]
    if ndim == 3 and importlib.util.find_spec("monai"):
        from monai.networks.blocks import Warp
        theirs = Warp("bilinear", "zeros")
        found["MONAI"] = lambda: theirs(image, field)
    return found


def composition(image: Tensor, matrix: Tensor, field: Tensor) -> dict[str, Method]:
    shape, other = tuple(image.shape[2:]), field.flip(0).contiguous()
    return {"regenv": lambda: warp.compose(other, field),
            "torch broadcast grid": lambda: field + sampling.sample(
                other, (sampling.identity(shape, field.device) + field).movedim(1, -1), padding="border")}


def labels(image: Tensor, matrix: Tensor, field: Tensor) -> dict[str, Method]:
    shape, classes = tuple(image.shape[2:]), (9 * image).to(torch.int16)
    return {
        "regenv": lambda: warp.warp_through(classes, matrix, field, shape, mode="nearest"),
        "torch broadcast grid": lambda: sampling.sample_labels(
            classes, sampling.affine_coordinates(matrix, shape, field))}


def fused_warp(image: Tensor, matrix: Tensor, field: Tensor) -> dict[str, Method]:
    fixed = image.flip(0).contiguous()
    return {"regenv": lambda: warp.fused_warp(fixed, image, matrix, None, "difference"),
            "torch broadcast grid": lambda: reference.fused_warp(fixed, image, matrix, None, "difference")}


WARPS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], dict[str, Method]], Callable[[int], int]]] = {
    "affine": (affine, lambda ndim: 8), "dense": (dense, lambda ndim: 8 + 4 * ndim),  # and bytes moved a voxel, least
    "composition": (composition, lambda ndim: 12 * ndim), "labels": (labels, lambda ndim: 4 + 4 * ndim),
    "step": (fused_warp, lambda ndim: 12)}


def seconds(methods: dict[str, Method], repeats: int, device: str = "cpu") -> dict[str, float]:
    """Median seconds of every method, run in turn. Of two calls in a row the second counts: the first may compile, and
    the method before may have left full caches and a busy core."""

    def run(method: Method) -> float:
        for _ in range(2):
            begin = perf_counter()
            method()
            if device == "cuda":
                torch.cuda.synchronize()
        return perf_counter() - begin

    taken: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, method in methods.items():
            taken[name].append(run(method))
    return {name: float(np.median(each)) for name, each in taken.items()}


def bandwidth(device: str = "cpu") -> float:
    """Bytes a second of a large copy, read and written."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / seconds({"copy": lambda: target.copy_(source)}, 5, device)["copy"]


def threaded(threads: int) -> None:
    """Set the number of threads of all libraries."""
    torch.set_num_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Milliseconds of regenv, and how many times as long the others take."""
    names = list(dict.fromkeys(name for row in rows for name in row["seconds"] if name != "regenv"))
    lines = [f"| warp | shape | lanes | threads | regenv, ms | of copy bandwidth | {' | '.join(names)} |",
             "| --- | --- | ---: | ---: | ---: | ---: |" + " ---: |" * len(names)]
    for row in rows:
        ours = row["seconds"]["regenv"]
        ratios = (f"{row['seconds'][name] / ours:.1f} x" if name in row["seconds"] else "" for name in names)
        lines.append(f"| {row['warp']} | {row['shape']} | {row['lanes']} | {row['threads']} | {1e3 * ours:.3g} | "
                     f"{row['share']:.0%} | {' | '.join(ratios)} |")
    return "\n".join(lines) + "\n"


def draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """How many times as long torch takes, over the voxels of a batch, on one thread."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for name in WARPS:
        for ndim, marker in ((2, "s"), (3, "o")):
            shown = [row for row in rows if row["warp"] == name and row["shape"].count("x") == ndim - 1
                     and row["threads"] == "1"]
            axis.plot([row["voxels"] for row in shown],
                      [row["seconds"]["torch broadcast grid"] / row["seconds"]["regenv"] for row in shown], marker,
                      label=f"{name}, {ndim}D")
    axis.axhline(1, color="0.7", lw=1)
    axis.set(xlabel="voxels of a batch", ylabel="torch's time / regenv's, one thread", xscale="log", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, ncols=2)
    keep(figure, path)


def measured(names: Sequence[str], size: str, lanes: int, where: str, copied: float, repeats: int,
             device: str = "cpu") -> list[dict[str, Any]]:
    """A row for every warp."""
    shape = tuple(int(n) for n in size.split("x"))
    given, voxels, rows = [part.to(device) for part in problem(shape, lanes)], lanes * math.prod(shape), []
    for name in names:
        make, moved = WARPS[name]
        taken, bytes_moved = seconds(make(*given), repeats, device), moved(len(shape)) * voxels
        rows.append({"warp": name, "shape": size, "lanes": lanes, "threads": where, "voxels": voxels, "seconds": taken,
                     "bytes": bytes_moved, "share": bytes_moved / taken["regenv"] / copied})
        print(f"{name}, {size}, {lanes} lanes, {where} threads: " + ", ".join(
            f"{who} {1e3 * each:.3g} ms" for who, each in taken.items()), flush=True)
    return rows


def growth(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Exponents of regenv's seconds on one thread, over voxels of a batch and over lanes of the smallest images."""
    laws = []
    for name, ndim in itertools.product(WARPS, (2, 3)):
        mine = [row for row in rows if row["warp"] == name and row["threads"] == "1"
                and row["shape"].count("x") == ndim - 1]
        for over, chosen in (("voxels", sorted(mine, key=lambda row: row["voxels"])),
                             ("lanes", [row for row in mine if row["shape"] == mine[0]["shape"]])):
            if len({row[over] for row in chosen}) > 1:
                power, _, used = power_law([row[over] for row in chosen], [row["seconds"]["regenv"] for row in chosen])
                laws.append({"warp": f"{name}, {ndim}D", "over": over, "power": power, "rows": used})
    return laws


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES), help="such as 64x64,128x128x128")
    parser.add_argument("--lanes", type=int, nargs="+", default=LANES)
    parser.add_argument("--warps", nargs="+", choices=WARPS, default=list(WARPS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "kernels")
    arguments = parser.parse_args(typed)
    everything = os.cpu_count() or 1
    rows: list[dict[str, Any]] = []
    copied: dict[str, float] = {}
    for threads in dict.fromkeys((1, everything)):
        threaded(threads)
        copied[str(threads)] = bandwidth()
        for size, lanes in itertools.product(arguments.sizes.split(","), arguments.lanes):
            if lanes * math.prod(int(n) for n in size.split("x")) <= MOST:
                rows += measured(arguments.warps, size, lanes, str(threads), copied[str(threads)], arguments.repeats)
    if torch.cuda.is_available():
        copied["GPU"] = bandwidth("cuda")
        for size, lanes in GPU_SIZES:
            rows += measured(arguments.warps, size, lanes, "GPU", copied["GPU"], 20, "cuda")
    laws = growth(rows)
    told = (f"# Kernels\n\nMade by `{' '.join(['python benchmarks/kernels.py', *typed])}` on {date.today()}, "
            f"{machine()}; a copy moves "
            f"{', '.join(f'{rate / 1e9:.1f} GB/s on {threads}' for threads, rate in copied.items())} (threads). Times "
            f"of others are multiples of ours.\n\n{table(rows)}")
    if laws:
        told += ("\n## Growth\n\nOur time on one thread grows with these powers of the voxels of a batch, and of the "
                 "lanes at the smallest size, by least squares over the logarithms of the rows that take at least "
                 f"{ABOVE:g} times as long as the fastest; overhead dominates the others.\n\n"
                 "| warp | over | power | rows |\n| --- | --- | ---: | ---: |\n" + "".join(
                     f"| {law['warp']} | {law['over']} | {law['power']:.2f} | {law['rows']} |\n" for law in laws))
    publish(arguments.out, told, {"machine": machine(), "copy_bytes_per_second": copied, "rows": rows, "growth": laws})
    draw(arguments.out.with_suffix(".png"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
