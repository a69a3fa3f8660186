"""Frames that show how well two images match: uint8 RGB pictures for ``render()``, videos and result files.

A volume is shown by its three middle slices, axial, coronal and sagittal, side by side. Arrays are taken to be LPS, as
SimpleITK orders them: the head's top points up, and the patient's right is on the left.
"""

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

MODES = ("overlay", "checkerboard", "difference")
RENDER_MODES = ("rgb_array",)  # of environments, in Gymnasium's terms
SIDE = 256  # pixels along the longer side of the largest panel, at least
CURVE_HEIGHT = 96  # pixels

_INK, _PAPER, _LINE, _FRAME = (255, 255, 255), (0, 0, 0), (255, 200, 60), (90, 90, 90)

# Glyphs of the characters from space to tilde, 5 columns of 7 dots each, one byte a column, lowest bit on top.
_FONT = bytes.fromhex(
    "0000000000 00005f0000 0007000700 147f147f14 242a7f2a12 2313086462 3649552250 0000070000 001c224100 0041221c00"
    "2a1c7f1c2a 08083e0808 0000503000 0808080808 0000606000 2010080402 3e5149453e 00427f4000 4261514946 2141454b31"
    "1814127f10 2745454539 3c4a494930 0171090503 3649494936 064949291e 0000363600 0000563600 0008142241 1414141414"
    "4122140800 0201510906 324979413e 7e1111117e 7f49494936 3e41414122 7f4141221c 7f49494941 7f09090901 3e41495a3a"
    "7f0808087f 00417f4100 2040413f01 7f08142241 7f40404040 7f020c027f 7f0408107f 3e4141413e 7f09090906 3e4151215e"
    "7f09192946 4649494931 01017f0101 3f4040403f 1f2040201f 3f4038403f 6314081463 0304780403 6151494543 007f414100"
    "0204081020 0041417f00 0402010204 4040404040 0001020400 2054545478 7f48444438 3844444420 384444487f 3854545418"
    "087e090102 0c5252523e 7f08040478 00447d4000 2040443d00 7f10284400 00417f4000 7c04180478 7c08040478 3844444438"
    "7c14141408 081414187c 7c08040408 4854545420 043f444020 3c4040207c 1c2040201c 3c4030403c 4428102844 0c5050503c"
    "4464544c44 0008364100 00007f0000 0041360800 0804081008"
)


def frame(fixed: Any, warped: Any, mode: str = "overlay", text: str | None = None, *,
          spacing: Sequence[float] | None = None, errors: Sequence[float] | None = None) -> NDArray[np.uint8]:
    """One picture of a fixed image and a warped one.

    Args:
        fixed, warped: (H, W) or (D, H, W) arrays or tensors, intensities in [0, 1] (beyond: clipped).
        mode: "overlay" (fixed green, warped magenta, so a match is grey), "checkerboard" (squares of either in turn)
            or "difference" (warped brighter: orange; fixed brighter: blue; equal: black).
        text: written into the top left corner; see :func:`annotate` for the usual one.
        spacing: mm per voxel, ITK order (x, y[, z]), for the right aspect; None: cubic voxels.
        errors: the errors so far, one per step, drawn as a curve below the picture. Pass at least one from the first
            frame on, so that all frames of a video have the same size.
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
    sides = (1.0,) * a.ndim if spacing is None else tuple(float(s) for s in spacing)[::-1]
    if len(sides) != a.ndim or min(sides) <= 0:
        raise ValueError(f"render: spacing is {spacing}; a {a.ndim}D image needs {a.ndim} positive numbers.")
    sections = _sections(a, b, sides)
    scale = max(SIDE / max(max(height, width) for _, _, height, width in sections), 1 / min(sides))
    panels = [_blend(_resize(x, height * scale, width * scale), _resize(y, height * scale, width * scale), mode)
              for x, y, height, width in sections]
    picture = _even(_beside(panels))
    if errors is not None:
        picture = np.concatenate([picture, curve(errors, CURVE_HEIGHT, picture.shape[1])])
    return picture if text is None else _write(picture, text, 4, 4)


def check_modes(render_mode: str | None, render_style: str) -> None:
    """Raise ValueError unless an environment can draw like that: ``render_mode`` None or "rgb_array", a known style."""
    if render_mode not in (None, *RENDER_MODES):
        raise ValueError(f"render_mode is {render_mode!r}; it must be None or one of {', '.join(RENDER_MODES)}.")
    if render_style not in MODES:
        raise ValueError(f"render_style is {render_style!r}; it must be one of {', '.join(MODES)}.")


def annotate(picture: NDArray[np.uint8], step: int, error: float | None, unit: str = "mm",
             name: str = "TRE") -> NDArray[np.uint8]:
    """A copy of a frame with the step's number and its error written in: ``step 12  TRE 3.4 mm``.

    Args: picture (H, W, 3) uint8; error None or NaN where it is unknown, and then left out.
    """
    known = error is not None and np.isfinite(error)
    return _write(picture, f"step {step}" + (f"  {name} {error:.1f} {unit}" if known else ""), 4, 4)


def curve(errors: Sequence[float], height: int = CURVE_HEIGHT, width: int = SIDE) -> NDArray[np.uint8]:
    """The errors over the steps as a line from 0 (bottom) to their maximum (top, its value written there); NaN: a gap.

    Returns: (height, width, 3) uint8.
    """
    picture = np.full((height, width, 3), _PAPER, dtype=np.uint8)
    picture[[0, -1]] = picture[:, [0, -1]] = _FRAME
    values = np.asarray(errors, dtype=np.float64)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return picture
    top = max(float(finite.max()), 1e-9)
    x = np.linspace(4, width - 5, max(len(values), 2))[: len(values)]
    y = (height - 5) - values / top * (height - 9)
    for i in range(len(values)):
        j = min(i + 1, len(values) - 1)
        if np.isfinite(y[i]) and np.isfinite(y[j]):
            dots = int(max(abs(x[j] - x[i]), abs(y[j] - y[i]))) + 2
            rows = np.linspace(y[i], y[j], dots).round().astype(int)
            columns = np.linspace(x[i], x[j], dots).round().astype(int)
            for thick in (0, 1):
                picture[(rows + thick).clip(0, height - 1), columns] = _LINE
    label = f"{finite.max():.3g}"  # on the right, where a falling curve leaves room
    return _write(picture, label, max(0, width - 12 * len(label) - 8), 6)


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


def _array(image: Any) -> NDArray[Any]:
    return np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)


def _pixels(image: NDArray[Any]) -> NDArray[np.float32]:
    return np.nan_to_num(image.astype(np.float32)).clip(0, 1)


def _sections(a: NDArray[Any], b: NDArray[Any],
              sides: tuple[float, ...]) -> list[tuple[NDArray[np.float32], NDArray[np.float32], float, float]]:
    """The slices to show of both images, and each one's height and width, mm."""
    if a.ndim == 2:
        return [(_pixels(a), _pixels(b), a.shape[0] * sides[0], a.shape[1] * sides[1])]
    sections = []
    for axis in range(3):
        rows, columns = (i for i in range(3) if i != axis)
        x, y = (_pixels(np.take(image, image.shape[axis] // 2, axis)) for image in (a, b))
        if rows == 0:  # array axis 0 is z, which runs upwards; picture rows run downwards
            x, y = x[::-1], y[::-1]
        sections.append((x, y, a.shape[rows] * sides[rows], a.shape[columns] * sides[columns]))
    return sections


def _resize(image: NDArray[np.float32], height: float, width: float) -> NDArray[np.float32]:
    size = (max(1, round(height)), max(1, round(width)))
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None, None]
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()


def _blend(fixed: NDArray[np.float32], warped: NDArray[np.float32], mode: str) -> NDArray[np.uint8]:
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


def _beside(panels: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Panels side by side, each centred in the height of the tallest."""
    height = max(panel.shape[0] for panel in panels)
    padded = []
    for panel in panels:
        above = (height - panel.shape[0]) // 2
        padded.append(np.pad(panel, ((above, height - panel.shape[0] - above), (0, 0), (0, 0))))
    return np.concatenate(padded, axis=1)


def _even(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)))


def _write(picture: NDArray[np.uint8], text: str, left: int, top: int) -> NDArray[np.uint8]:
    """A copy with a line of text in white on black, as large as fits (twice or once the font's size), else cut off."""
    dots = _dots(text)
    if picture.shape[1] >= left + 2 * dots.shape[1] + 4:
        dots = dots.repeat(2, axis=0).repeat(2, axis=1)
    out = picture.copy()
    rows = slice(max(0, top - 2), top - 2 + dots.shape[0] + 4)
    columns = slice(max(0, left - 2), left - 2 + dots.shape[1] + 4)
    ink = np.pad(dots, 2)[: out[rows, columns].shape[0], : out[rows, columns].shape[1]]
    out[rows, columns] = np.where(ink[..., None], _INK, _PAPER)
    return out


def _dots(text: str) -> NDArray[np.bool_]:
    """A line of text as a (7, 6 len(text) - 1) mask; a character that the font lacks becomes a question mark."""
    columns = []
    for character in text:
        index = ord(character) - 32
        glyph = index if 0 <= 5 * index < len(_FONT) else ord("?") - 32
        columns.append(np.frombuffer(_FONT, dtype=np.uint8)[5 * glyph : 5 * glyph + 5])
        columns.append(np.zeros(1, dtype=np.uint8))
    if not columns:
        return np.zeros((7, 0), dtype=bool)
    return (np.concatenate(columns)[None, :-1] >> np.arange(7)[:, None]) & 1 == 1
