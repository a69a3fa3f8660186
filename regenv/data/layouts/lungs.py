"""Public collections of lungs in CT at inhale and exhale, with key-points: DIR-Lab 4DCT and COPDgene, EMPIRE10.

DIR-Lab's images are files without headers: their sizes and spacings are listed here as on its web site, and landmarks
count from 1. Slices run from head to feet, so that the grid's third axis points down (Sokooti et al. 2017 turn them in
the same way). DIR-Lab distributes no masks of the lungs; the user's own are found by their names and become label 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from regenv.data.io.images import Image, ImageError
from regenv.data.layouts.common import Collection, Scan, existing, once, uniform
from regenv.grid import Grid

_OFFSET_HU = 1024
_FEET_LAST = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
_MASKS = r"\.(?:mhd|mha|nii|nii\.gz|nrrd)"
_SLICE_MM = 2.5
# per case: voxels from side to side, number of slices, mm within slices
_4DCT = ((256, 94, 0.97), (256, 112, 1.16), (256, 104, 1.15), (256, 99, 1.13), (256, 106, 1.10), (512, 128, 0.97),
         (512, 136, 0.97), (512, 128, 0.97), (512, 128, 0.97), (512, 120, 0.97))
_COPD = ((512, 121, 0.625), (512, 102, 0.645), (512, 126, 0.652), (512, 126, 0.590), (512, 131, 0.647),
         (512, 119, 0.633), (512, 112, 0.625), (512, 115, 0.586), (512, 116, 0.664), (512, 135, 0.742))
_FIXED = ("inhale", "exhale")


def dirlab_4dct(folder: str | Path, fixed: str = "inhale") -> Collection:
    """DIR-Lab's 4DCT (Castillo et al. 2009): ten cases at full inhale (T00) and full exhale (T50), 300 landmarks each.

    Files, at any depth and in any case: ``Case1Pack/Images/case1_T00_s.img`` (``-ssm.img`` or ``.img`` in other packs),
    ``Case1Pack/ExtremePhases/Case1_300_T00_xyz.txt`` (``case6_dirLab300_T00_xyz.txt``), and the user's own masks, for
    all images or none: the image's name in a folder ``Masks``, or with ``mask`` in it. Scans are called ``case1_T00``.

    Args: folder; fixed: "inhale" or "exhale".
    Raises ImageError: no such folder, no pair of images, an unknown case, or an image without its partner or landmarks.
    """
    return _dirlab(folder, fixed, _4DCT, r"case(\d+)_(T00|T50)", ("T00", "T50"), r"(?:[-_]s{1,2}m?)?\.img",
                   r"case(\d+)_(?:dirlab)?300_(T00|T50)_xyz\.txt", "case{}_{}", "caseN_T00*.img and caseN_T50*.img")


def dirlab_copd(folder: str | Path, fixed: str = "inhale") -> Collection:
    """DIR-Lab's COPDgene pairs (Castillo et al. 2013): ten breath-hold scans at inhale (iBH) and exhale (eBH).

    Each scan has 300 landmarks. Files, at any depth and in any case: ``copd1_iBHCT.img``, ``copd1_300_iBH_xyz_r1.txt``
    and the like, and the user's own masks, as for :func:`dirlab_4dct`. Scans are called ``copd1_iBH``.

    Args, raises: as :func:`dirlab_4dct`.
    """
    return _dirlab(folder, fixed, _COPD, r"copd(\d+)_([ie]BH)(?:CT)?", ("iBH", "eBH"), r"\.img",
                   r"copd(\d+)_300_([ie]BH)_xyz_r1\.txt", "copd{}_{}", "copdN_iBHCT.img and copdN_eBHCT.img")


def empire10(folder: str | Path) -> Collection:
    """EMPIRE10 (Murphy et al. 2011): ``scans/01_Fixed.mhd`` and ``scans/01_Moving.mhd`` with their .raw, and
    ``lungMasks/01_Fixed.mhd`` and so on; the lungs become label 1.

    Its landmarks are not public. The user's own key-points, for all images or none, are ``keypoints/01_Fixed.csv`` and
    so on, voxel indices x, y, z from 0 as in Learn2Reg. Scans are called ``01_Fixed``.

    Raises ImageError: no such folder, no pair of images, or an image without its partner or its mask.
    """
    folder = existing(folder)
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    points: dict[str, Path] = {}
    for path in sorted(folder.rglob("*_*.*")):
        match = re.fullmatch(r"(\d+_(?:Fixed|Moving))\.(mhd|csv)", path.name)
        if match and path.is_file():
            in_masks = path.parent.name.lower() == "lungmasks"
            once(points if match[2] == "csv" else masks if in_masks else images, match[1], path)
    numbers = sorted({name.split("_")[0] for name in images}, key=int)
    names = [(f"{number}_Fixed", f"{number}_Moving") for number in numbers]
    _check_pairs(folder, images, names, "scans/NN_Fixed.mhd and scans/NN_Moving.mhd")
    for name in (each for pair in names for each in pair):
        if name not in masks:
            raise ImageError(f"{images[name]}: its lungMasks/{name}.mhd is missing in {folder}. Unpack the masks, too.")
    scans = tuple(Scan(name, images[name], masks[name], keypoints=points.get(name)) for pair in names for name in pair)
    return uniform(folder, Collection(scans, tuple(names), merged=True))


def read_raw(path: Path, grid: Grid) -> Image:
    """An image without a header (int16, little-endian, HU + 1024), in HU, (*shape) float32.

    Raises ImageError: the file's size does not fit the grid, or it cannot be read, or is constant.
    """
    needed = 2 * math.prod(grid.shape)
    try:
        content = path.read_bytes() if path.stat().st_size == needed else b""
        found = path.stat().st_size
    except OSError as error:
        raise ImageError(f"{path}: it cannot be read ({error}). Check the file and its permissions.") from error
    if found != needed:
        size = " x ".join(map(str, grid.size))
        raise ImageError(f"{path}: file size is {found} bytes; {size} voxels of 2 bytes need {needed}. The file is "
                         f"{'truncated' if found < needed else 'not of this case'}; copy or download it again.")
    array = np.frombuffer(content, "<i2").reshape(grid.shape).astype(np.float32) - _OFFSET_HU
    if array.min() == array.max():
        raise ImageError(f"{path}: intensity is {array.min():g} everywhere; nothing can be registered in a constant "
                         "image. Copy or download it again.")
    return Image(array, grid, str(path))


def _dirlab(folder: str | Path, fixed: str, cases: tuple[tuple[int, int, float], ...], scan: str,
            phases: tuple[str, str], image: str, landmarks: str, name: str, layout: str) -> Collection:
    """Either DIR-Lab collection.

    Args:
        cases: shape and spacing per case.
        scan: pattern of case and phase in file names. image: of the rest of an image's name. landmarks: of a landmark
            file's name. phases: names of inhale and exhale.
        name: format of a scan's name. layout: the expected files, for messages.
    """
    folder = existing(folder)
    if fixed not in _FIXED:
        raise ImageError(f"{folder}: fixed is {fixed!r}; it must be one of {', '.join(_FIXED)}.")
    images: dict[str, Path] = {}
    points: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    numbers: set[int] = set()
    spelled = {phase.lower(): phase for phase in phases}
    for path in sorted(folder.rglob("*")):
        is_mask = path.parent.name.lower() == "masks" or "mask" in path.name.lower()
        for kind, pattern in ((points, landmarks), (masks, scan + r"[-_a-z]*" + _MASKS), (images, scan + image)):
            match = re.fullmatch(pattern, path.name, re.IGNORECASE)
            if match and path.is_file() and (kind is not masks or is_mask):
                number = int(match[1])
                if not 1 <= number <= len(cases):
                    raise ImageError(f"{path}: case is {number}; it must be one of 1 to {len(cases)}. Move others "
                                     "away.")
                numbers.add(number)
                once(kind, name.format(number, spelled[match[2].lower()]), path)
    order = phases if fixed == _FIXED[0] else phases[::-1]
    pairs = [(name.format(number, order[0]), name.format(number, order[1])) for number in sorted(numbers)]
    _check_pairs(folder, images, pairs, layout)
    scans = []
    for number, pair in zip(sorted(numbers), pairs, strict=True):
        across, slices, spacing = cases[number - 1]
        grid = Grid.centered((slices, across, across), (spacing, spacing, _SLICE_MM), direction=_FEET_LAST)
        for each in pair:
            if each not in points:
                raise ImageError(f"{images[each]}: its landmarks are missing; {each} has none in {folder}. Unpack the "
                                 "whole archive.")
            scans.append(Scan(each, images[each], masks.get(each), keypoints=points[each], raw=grid, first=1))
    return uniform(folder, Collection(tuple(scans), tuple(pairs), merged=True))


def _check_pairs(folder: Path, images: Mapping[str, Path], pairs: list[tuple[str, str]], layout: str) -> None:
    """Raise ImageError unless there are pairs and both images of each."""
    if not pairs:
        raise ImageError(f"{folder}: number of pairs is 0; {layout} are needed. Check the path, or unpack the archives "
                         "into it.")
    for pair in pairs:
        for name in pair:
            if name not in images:
                raise ImageError(f"{folder}: the image of {name} is missing; {layout} are needed. Unpack the whole "
                                 "archive.")
