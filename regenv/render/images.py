"""Pictures of two images: as they are, coloured and side by side; (H, W, 3) uint8."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from regenv.grid import Grid
from regenv.render.planes import planes_of
from regenv.render.text import write

MODES = ("overlay", "checkerboard", "difference")
SIDE = 256  # pixels along the longer side of the largest panel, at least


def frame(fixed: Any, warped: Any, mode: str = "overlay", text: str | None = None, *,
          spacing: Sequence[float] | None = None) -> NDArray[np.uint8]:
    """One picture of a fixed image and a warped one.

    Args:
        fixed, warped: (H, W) or (D, H, W) arrays or tensors, intensities in [0, 1] (beyond: clipped).
        mode: "overlay" (fixed green, warped magenta, so a match is grey), "checkerboard" (squares of either in turn)
            or "difference" (warped brighter: orange; fixed brighter: blue; equal: black).
        text: written into the top left corner.
        spacing: mm per voxel, ITK order (x, y[, z]), for the right aspect; None: cubic voxels.
    Returns: (height, width, 3) uint8, both sides even (video codecs need that) and the longest panel >= 256 pixels.

    Raises:
        ValueError: unknown mode, unequal shapes, or neither 2D nor 3D.
    """
    a, b = _array(fixed), _array(warped)
    if mode not in MODES:
        raise ValueError(f"render: mode is {mode!r}; choose one of {', '.join(MODES)}.")
    if a.shape != b.shape or a.ndim not in (2, 3):
        raise ValueError(f"render: fixed is {a.shape} and warped is {b.shape}; both must be the same (H, W) or "
                         f"(D, H, W).")
    if spacing is not None and (len(spacing) != a.ndim or min(spacing) <= 0):
        raise ValueError(f"render: spacing is {spacing}; a {a.ndim}D image needs {a.ndim} positive numbers.")
    grid = Grid.centered(a.shape, (1.0,) * a.ndim if spacing is None else spacing)
    sizes = sizes_of(grid)
    scale = max(SIDE / max(map(max, sizes)), 1 / min(grid.spacing))
    panels = [blend(resized(plane.slice_of(a), height * scale, width * scale),
                    resized(plane.slice_of(b), height * scale, width * scale), mode)
              for plane, (height, width) in zip(planes_of(grid), sizes, strict=True)]
    picture = even(beside(panels))
    if text is not None:
        write(picture, text, 4, 4, paper=(0, 0, 0))
    return picture


def sizes_of(grid: Grid) -> list[tuple[float, float]]:
    """Height and width of each of a grid's planes, mm."""
    sides = grid.extent[::-1]
    if grid.ndim == 2:
        return [(sides[0], sides[1])]
    return [(sides[plane.axes[1]], sides[plane.axes[2]]) for plane in planes_of(grid)]


def write_png(path: str | PathLike[str], picture: NDArray[np.uint8]) -> None:
    """Write a picture (H, W, 3) uint8 as a PNG file.

    Raises:
        ValueError: the picture is not (H, W, 3) uint8. OSError: the disk does not take it.
    """
    if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"{fspath(path)}: the picture is {picture.shape} {picture.dtype}; it must be (H, W, 3) uint8.")
    image = sitk.GetImageFromArray(np.ascontiguousarray(picture), isVector=True)
    try:
        fspath(path).encode()  # a name that is not UTF-8 would end the process
        sitk.WriteImage(image, fspath(path), imageIO="PNGImageIO")
        whole = np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(fspath(path), imageIO="PNGImageIO")), picture)
    except (RuntimeError, UnicodeEncodeError):
        whole = False
    if not whole:
        raise OSError(f"{fspath(path)}: it cannot be written. Check the folder and the free space.")


def unit(image: NDArray[Any]) -> NDArray[np.float32]:
    """Intensities clipped to [0, 1]; NaN is black."""
    return np.nan_to_num(image.astype(np.float32)).clip(0, 1)


def resized(image: NDArray[Any], height: float, width: float) -> NDArray[np.float32]:
    """A picture (H, W) of another size, by linear interpolation of intensities in [0, 1]."""
    return zoomed(unit(image), height, width)


def zoomed(values: NDArray[Any], height: float, width: float) -> NDArray[np.float32]:
    """Values (H, W) on a lattice of another size over the same extent, by linear interpolation."""
    size = (max(1, round(height)), max(1, round(width)))
    lattice = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
    return F.interpolate(lattice, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()


def blend(fixed: NDArray[np.float32], warped: NDArray[np.float32], mode: str) -> NDArray[np.uint8]:
    """One panel: (H, W) twice to (H, W, 3) uint8."""
    if mode == "overlay":
        rgb = np.stack([warped, fixed, warped], axis=-1)
    elif mode == "checkerboard":
        square = max(1, max(fixed.shape) // 8)
        rows, columns = np.indices(fixed.shape) // square
        rgb = np.where((rows + columns) % 2 == 0, fixed, warped)[..., None].repeat(3, axis=-1)
    else:
        over, under = (warped - fixed).clip(0, 1), (fixed - warped).clip(0, 1)
        rgb = np.stack([over, 0.55 * (over + under), under], axis=-1)
    return np.round(rgb * 255).astype(np.uint8)


def beside(panels: Sequence[NDArray[np.uint8]], gap: int = 0, paper: int = 0) -> NDArray[np.uint8]:
    """Panels side by side on grey paper, ``gap`` pixels apart, each centred in the height of the tallest."""
    height = max(panel.shape[0] for panel in panels)
    row = np.full((height, sum(panel.shape[1] + gap for panel in panels) - gap, 3), paper, dtype=np.uint8)
    left = 0
    for panel in panels:
        above = (height - panel.shape[0]) // 2
        row[above:above + panel.shape[0], left:left + panel.shape[1]] = panel
        left += panel.shape[1] + gap
    return row


def even(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Padded to even sides, which video codecs need."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)))


def _array(image: Any) -> NDArray[Any]:
    return np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
