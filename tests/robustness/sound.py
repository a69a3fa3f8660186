"""Small undamaged files of every format that a reader takes, and what damage to each of their bytes may change."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image as pillow

from regenv.data.io.resampling import framed, matrix_to_sitk
from regenv.grid import Grid
from tests.regenv.data.io.dicom_files import write as write_dicom
from tests.regenv.data.io.helpers import write_analyze
from tests.regenv.data.io.tags import entry, first_strip

NOTHING, PLACE, VOXELS = "nothing", "place", "voxels"      # what may differ in a damaged file that is read
_Ranges = tuple[tuple[int, int], ...]
# Bytes of a NIfTI header that alone say where the image lies (pixdim, vox_offset's neighbours, units, both forms), and
# what its voxels mean (datatype, scl_slope and scl_inter).
_NIFTI_PLACE: _Ranges = ((76, 108), (123, 124), (252, 328))
_NIFTI_VOXELS: _Ranges = ((70, 72), (112, 120))
_TIFF_VOXELS = (262, 317, 339)      # tags that alone say what voxels mean: which is white, differences, type
_PLACE_FIELDS = (b"Offset", b"TransformMatrix", b"ElementSpacing", b"space origin", b"space directions", b"spacings")


_MARKUPS = json.dumps({"@schema": "https://slicer.org/markups-schema-v1.0.3.json#", "markups": [
    {"type": "Fiducial", "coordinateSystem": "RAS", "coordinateUnits": "mm", "controlPoints": [
        {"label": "tip", "position": [1.5, -2.0, 30.25], "positionStatus": "defined"},
        {"label": "end", "position": [4, 5, 6]}]}]}, indent=1).encode()


@dataclass(frozen=True)
class Sound:
    """An undamaged file.

    Attributes:
        name: for reports.
        files: name and content, of the file and of those that it names.
        main: the name of the one that is read.
        victim: the name of the one that is damaged.
        read: "image", "landmarks" or "transform".
        flipped: bytes of ``victim`` that are damaged one by one: what is not protected by a checksum, and is no header,
            is left out, because nobody could tell.
        words: whether the header is made of words.
        place, voxels: bytes that alone say where the image lies, and what its voxels are.
        time: which of several volumes is read.
    """

    name: str
    files: Mapping[str, bytes]
    main: str
    victim: str
    read: str = "image"
    flipped: tuple[int, int] = (0, 0)
    place: _Ranges = ()
    voxels: _Ranges = ()
    words: bool = False
    time: int | None = None

    def may_change(self, at: int) -> str:
        """What damage to a byte may change unnoticed."""
        for what, ranges in ((VOXELS, self.voxels), (PLACE, self.place)):
            if any(start <= at < end for start, end in ranges):
                return what
        return NOTHING


def all_sound() -> list[Sound]:
    """All of them; always the same."""
    with tempfile.TemporaryDirectory() as folder:
        makers = (_nifti, _volumes, _text_headers, _pictures, _tiff, _bmp, _dicom, _others)
        return [sound for make in makers for sound in make(Path(folder))]


def image(shape: tuple[int, ...] = (4, 5, 6), dtype: str = "int16") -> sitk.Image:
    """Random voxels, in a place that is turned and off the origin."""
    rng = np.random.default_rng(22)
    c, s = 0.6, 0.8
    direction = (c, -s, s, c) if len(shape) == 2 else (c, -s, 0, s, c, 0, 0, 0, 1)
    grid = Grid(shape, (1.5, 2.0, 2.5)[:len(shape)], (10.0, -20.0, 30.0)[:len(shape)], direction)
    return framed(rng.integers(0, 200, shape).astype(dtype), grid)


def _taken(folder: Path, main: str) -> dict[str, bytes]:
    """The files in a folder, which are removed."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()
    assert main in found
    return found


def _nifti(folder: Path) -> Iterator[Sound]:
    for name, dtype, shape in (("a.nii", "int16", (4, 5, 6)), ("b.nii", "float32", (7, 6)),
                               ("c.nii.gz", "int16", (4, 5, 6)), ("d.nii.gz", "uint8", (8, 9))):
        sitk.WriteImage(image(shape, dtype), str(folder / name))
        files = _taken(folder, name)
        if name.endswith(".gz"):
            yield Sound(name, files, name, name, flipped=(0, len(files[name])))
        else:
            yield Sound(name, files, name, name, flipped=(0, 352), place=_NIFTI_PLACE, voxels=_NIFTI_VOXELS)
    write_analyze(folder / "e", sitk.GetArrayFromImage(image()), (1.5, 2.0, 2.5))
    files = _taken(folder, "e.hdr")
    yield Sound("Analyze", files, "e.img", "e.hdr", flipped=(0, 348), place=_NIFTI_PLACE,
                voxels=(*_NIFTI_VOXELS, (252, 348)))
    files = {"e.hdr": files["e.hdr"], "e.img.gz": gzip.compress(files["e.img"], mtime=0)}
    yield Sound("Analyze, gzip", files, "e.hdr", "e.img.gz", flipped=(0, len(files["e.img.gz"])))


def _volumes(folder: Path) -> Iterator[Sound]:
    """Three volumes in one file, of which the second is read."""
    for name, compressed in (("k.nii", False), ("l.nii.gz", True), ("m.mha", False), ("n.nrrd", True)):
        sitk.WriteImage(sitk.JoinSeries([image() + 7 * number for number in range(3)]), str(folder / name), compressed)
        files = _taken(folder, name)
        content = files[name]
        if name == "k.nii":
            yield Sound(name, files, name, name, flipped=(0, 352), place=_NIFTI_PLACE, voxels=_NIFTI_VOXELS, time=1)
        elif name == "l.nii.gz":
            yield Sound(name, files, name, name, flipped=(0, len(content)), time=1)
        else:
            yield Sound(name, files, name, name, flipped=(0, len(content) if compressed else _end(content)),
                        place=_place(content), words=True, time=1)


def _end(content: bytes) -> int:
    """Where a header of words ends."""
    match = re.search(rb"\n\n|ElementDataFile[^\n]*\n|\Z", content)
    assert match is not None
    return match.end()


def _place(content: bytes) -> _Ranges:
    """The lines of a header of words that say where the image lies."""
    place, at = [], 0
    for line in content[:_end(content)].splitlines(keepends=True):
        if line.startswith(_PLACE_FIELDS):
            place.append((at, at + len(line)))
        at += len(line)
    return tuple(place)


def _text_headers(folder: Path) -> Iterator[Sound]:
    for name, compressed, shape in (("a.mha", False, (4, 5, 6)), ("b.mha", True, (4, 5, 6)), ("c.mhd", False, (7, 6)),
                                    ("d.nrrd", False, (4, 5, 6)), ("e.nrrd", True, (4, 5, 6)),
                                    ("f.nhdr", False, (7, 6)), ("g.mhd", True, (7, 6))):
        sitk.WriteImage(image(shape), str(folder / name), useCompression=compressed)
        files = _taken(folder, name)
        content = files[name]
        whole = compressed and len(files) == 1
        yield Sound(name, files, name, name, flipped=(0, len(content) if whole else _end(content)),
                    place=_place(content), words=True)
        for other in set(files) - {name}:       # its voxels alone; only compressed ones can tell
            yield Sound(f"{name}'s {other}", files, name, other, flipped=(0, len(files[other]) if compressed else 0))


def _pictures(folder: Path) -> Iterator[Sound]:
    grey = sitk.GetImageFromArray(np.random.default_rng(3).integers(0, 255, (9, 11)).astype(np.uint8))
    for name, picture in (("a.png", grey), ("b.png", sitk.Cast(grey, sitk.sitkUInt16)), ("c.jpg", grey)):
        sitk.WriteImage(picture, str(folder / name))
        files = _taken(folder, name)
        whole = (0, len(files[name]))       # JPEG has no checksum: any of its bytes may change voxels
        yield Sound(name, files, name, name, flipped=whole, voxels=(whole,) if name.endswith(".jpg") else ())


def _tiff(folder: Path) -> Iterator[Sound]:
    voxels = np.random.default_rng(5).integers(0, 60_000, (9, 11)).astype(np.uint16)
    for name, picture, compression in (("d.tif", (voxels % 256).astype(np.uint8), None), ("e.tif", voxels, None),
                                       ("f.tif", voxels, "tiff_adobe_deflate"), ("g.tif", voxels, "tiff_lzw"),
                                       ("h.tif", (voxels / 7).astype(np.float32), None)):
        pillow.fromarray(picture).save(folder / name, compression=compression)
        files = _taken(folder, name)
        content = files[name]
        entries = [at for tag in _TIFF_VOXELS if (at := entry(content, tag)) is not None]
        whole = (0, len(content))       # strips that are stored plainly have no checksum, and LZW has none either
        yield Sound(name, files, name, name, flipped=whole if compression else (0, first_strip(content)[0]),
                    voxels=(whole,) if compression == "tiff_lzw" else tuple((at, at + 12) for at in entries))


def _bmp(folder: Path) -> Iterator[Sound]:
    grey = np.random.default_rng(6).integers(0, 255, (9, 11)).astype(np.uint8)
    for name, picture in (("i.bmp", grey), ("j.bmp", np.repeat(grey[..., None], 3, 2))):
        pillow.fromarray(picture).save(folder / name)
        files = _taken(folder, name)
        palette = picture.ndim == 2     # else every voxel stands there three times
        yield Sound(name, files, name, name, flipped=(0, len(files[name]) - (9 * 12 if palette else 0)),
                    voxels=((18, 19),))     # the width, as far as rows of other widths have as many bytes


def _dicom(folder: Path) -> Iterator[Sound]:
    array = np.random.default_rng(4).integers(0, 200, (4, 5, 6)).astype(np.int16)
    write_dicom(folder / "series", array)
    files = {f"series/{path.name}": path.read_bytes() for path in (folder / "series").iterdir()}
    shutil.rmtree(folder / "series")
    victim = sorted(files)[1]
    whole = (0, len(files[victim]))         # DICOM has no checksum either
    yield Sound("DICOM", files, "series", victim, flipped=whole, voxels=(whole,))


def _others(folder: Path) -> Iterator[Sound]:
    texts = {"a.csv": b"name,x,y,z\ntip,1,2,3\nend,4.5,-6,7e1\n", "b.txt": b"point\n2\n1 2 3\n4 5 6\n",
             "g.mrk.json": _MARKUPS,
             "c.fcsv": b"# Markups fiducial file\n# CoordinateSystem = LPS\n# columns = id,x,y,z\n1,1,2,3,0\n"}
    for name, content in texts.items():
        whole = (0, len(content))
        yield Sound(name, {name: content}, name, name, "landmarks", whole, voxels=(whole,), words=True)
    for name in ("d.tfm", "e.h5", "f.mat"):
        sitk.WriteTransform(matrix_to_sitk(np.eye(4) + 0.1 * np.arange(16).reshape(4, 4) * (np.arange(4) < 3)[:, None]),
                            str(folder / name))
        files = _taken(folder, name)
        whole = (0, len(files[name]))
        yield Sound(name, files, name, name, "transform", whole, voxels=(whole,), words=name.endswith(".tfm"))

