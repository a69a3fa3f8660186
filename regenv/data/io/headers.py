"""What a file says about itself, read before any voxel is.

SimpleITK zero-fills truncated NIfTI files, guesses when a spacing is zero or negative and allocates whatever a header
claims, all without a word. So the headers are parsed here and compared with the bytes that are really there.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np

MAX_BYTES = 2 << 30
FORMATS = "NIfTI (.nii, .nii.gz), MetaImage (.mha, .mhd), NRRD (.nrrd, .nhdr), PNG, JPEG or a DICOM series' folder"

_TEXT_HEADER_LIMIT = 1 << 20
_GZIP_SLACK = 1 << 20
_CHUNK = 1 << 20
_SINGULAR = 1e-6
_SPACING_TOLERANCE = 0.01


class ImageError(ValueError):
    """A file that cannot be used; the message names the file, the field, its value and the way out."""


@dataclass(frozen=True)
class Header:
    """What a file's header declares.

    Attributes:
        fields: the format's own names of size, channels and spacing, for messages.
        size: voxels per axis, ITK order, without trailing axes of one voxel beyond the third.
        channels: numbers per voxel.
        itemsize: bytes per number.
        spacing: mm, ITK order; None where the format has none.
        check_data: raises ImageError unless all voxels are really in the file; called last.
        check_direction: raises ImageError when the direction is singular or, for a given pixel spacing, ambiguous.
        repair: writes a copy of the file with another spacing to a path; None where a wrong spacing cannot be mended.
    """

    fields: tuple[str, str, str]
    size: tuple[int, ...]
    channels: int
    itemsize: int
    spacing: tuple[float, ...] | None
    check_data: Callable[[], None]
    check_direction: Callable[[bool], None] = lambda spacing_given: None
    repair: Callable[[Path, Sequence[float]], None] | None = None


def inspect(path: Path) -> Header:
    """The header of a file, by its suffix.

    Raises:
        ImageError: no such format, or the header cannot be read.
    """
    name = path.name.lower()
    for suffixes, parse in _PARSERS.items():
        if name.endswith(suffixes):
            return parse(path)
    raise ImageError(f"{path}: format is '{path.suffix}'; it must be one of {FORMATS}.")


def check(path: Path, header: Header, *, spacing_given: bool, max_bytes: int = MAX_BYTES) -> None:
    """Raise ImageError unless the declared image is a plain 2D or 3D one, of bearable size, and wholly in the file."""
    size_field, channel_field, spacing_field = header.fields
    size = " x ".join(map(str, header.size))
    if any(n < 1 for n in header.size):
        raise ImageError(f"{path}: {size_field} is {size}; every axis needs at least one voxel. Fix the header.")
    if header.channels != 1:
        raise ImageError(f"{path}: {channel_field} is {header.channels}; one intensity per voxel is needed. "
                         "Save one channel, or a grey-value image.")
    check_size(path, size_field, header.size, header.itemsize, max_bytes)
    if header.spacing is not None and not spacing_given:
        check_spacing(path, spacing_field, header.spacing, mendable=header.repair is not None)
    header.check_direction(spacing_given)
    header.check_data()


def check_size(path: Path, field: str, size: Sequence[int], itemsize: int, max_bytes: int) -> None:
    """Raise ImageError unless ``size`` is that of a 2D or 3D image that fits into ``max_bytes`` as float32."""
    shown = " x ".join(map(str, size))
    if len(size) not in (2, 3):
        raise ImageError(f"{path}: {field} is {shown}, {len(size)}D; a 2D or 3D image is needed. Save one time point.")
    if len(size) == 3 and size[2] == 1:
        raise ImageError(f"{path}: {field} is {shown}, a single slice; a 3D image needs at least two. "
                         "Save the slice as a 2D image (such as PNG or a 2D .mha) and use a 2D id.")
    if min(size) == 1:
        raise ImageError(f"{path}: {field} is {shown}; every axis needs at least two voxels. Use a larger image.")
    needed = math.prod(size) * max(4, itemsize)
    if needed > max_bytes:
        raise ImageError(f"{path}: {field} is {shown}, {needed / 2**30:.1f} GiB; the limit is {max_bytes / 2**30:.3g} "
                         "GiB. Crop or downsample the image, or pass max_bytes=... if the header is right.")


def check_spacing(path: Path, field: str, spacing: Sequence[float], *, mendable: bool = True) -> None:
    """Raise ImageError unless every spacing is positive and finite."""
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        way_out = "Fix the header, or pass spacing=..." if mendable else "Fix the header."
        raise ImageError(f"{path}: {field} is {tuple(spacing)} mm; every spacing must be positive and finite. "
                         + way_out)


def _singular(matrix: np.ndarray) -> bool:
    lengths = np.linalg.norm(matrix, axis=0)
    return bool(not np.isfinite(matrix).all() or (lengths == 0).any()
                or abs(np.linalg.det(matrix / lengths)) < _SINGULAR)


def _truncated(path: Path, field: str, found: int, needed: int) -> ImageError:
    return ImageError(f"{path}: {field} is {found} bytes, but the header declares {needed}; the file is truncated. "
                      "Copy or download it again.")


def not_finite(path: Path, index: tuple[int, ...], value: float, bad: int, count: int) -> ImageError:
    return ImageError(f"{path}: voxel {index} is {value} ({bad} of {count} are not finite); every intensity must be "
                      "finite. Replace them, for example by numpy.nan_to_num.")


# ---------------------------------------------------------------------------------------------------------- NIfTI

_NIFTI_TYPES = {2: (1, 1), 4: (1, 2), 8: (1, 4), 16: (1, 4), 32: (2, 4), 64: (1, 8), 128: (3, 1), 256: (1, 1),
                512: (1, 2), 768: (1, 4), 1024: (1, 8), 1280: (1, 8), 1792: (2, 8), 2304: (4, 1)}
# Offsets and struct codes of dim, datatype, pixdim, vox_offset, qform and sform codes, quaternion and offset, sform.
_NIFTI_FIELDS = ((40, "8h"), (70, "h"), (76, "8f"), (108, "f"), (252, "2h"), (256, "6f"), (280, "12f"))
_NIFTI_HEADER, _NIFTI_2_HEADER = 348, 540
_NIFTI_FLOATS = {16: "f4", 64: "f8"}


def _nifti(path: Path) -> Header:
    with path.open("rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
    if zipped and not path.name.lower().endswith(".gz"):
        raise ImageError(f"{path}: content is gzip, but the name ends in '.nii'; rename it to {path.name}.gz.")

    def opened() -> gzip.GzipFile | BufferedReader:
        return gzip.open(path, "rb") if zipped else path.open("rb")

    try:
        with opened() as file:
            raw = file.read(_NIFTI_HEADER)
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"{path}: gzip stream is damaged ({error}); copy or download the file again.") from error
    first = {struct.unpack_from(o + "i", raw)[0]: o for o in "<>"} if len(raw) == _NIFTI_HEADER else {}
    if _NIFTI_2_HEADER in first:
        raise ImageError(f"{path}: header is NIfTI-2; SimpleITK reads NIfTI-1. Convert it, for example by nibabel.")
    if _NIFTI_HEADER not in first:
        raise ImageError(f"{path}: header is {len(raw)} bytes that are not NIfTI; it must be a NIfTI-1 file. "
                         "Convert it, or give it the suffix of its real format.")
    order = first[_NIFTI_HEADER]
    dim, datatype, pixdim, offset, codes, quaternion, sform = (
        struct.unpack_from(order + c, raw, o) for o, c in _NIFTI_FIELDS)
    if not 1 <= dim[0] <= 7:
        raise ImageError(f"{path}: dim[0] is {dim[0]}; a NIfTI image has 1 to 7 axes. Fix the header.")
    if datatype[0] not in _NIFTI_TYPES:
        raise ImageError(f"{path}: datatype is {datatype[0]}; integer or float voxels of up to 64 bits are needed. "
                         "Convert the image to float32.")
    sizes = list(dim[1:dim[0] + 1])
    channels, itemsize = _NIFTI_TYPES[datatype[0]]
    count = math.prod(sizes) * channels * itemsize
    if len(sizes) >= 5:
        channels *= sizes.pop(4)
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    spacing = tuple(float(s) for s in pixdim[1:len(sizes) + 1])

    def check_data() -> None:
        start = offset[0]
        if not (math.isfinite(start) and start >= _NIFTI_HEADER):
            raise ImageError(f"{path}: vox_offset is {start:g}; voxels start after the {_NIFTI_HEADER} bytes of the "
                             "header. Fix the header.")
        needed = int(start) + count
        if not zipped and path.stat().st_size < needed:     # at once, before reading all of it
            raise _truncated(path, "file size", path.stat().st_size, needed)
        found = bad = 0
        first_bad = None
        kind = np.dtype(order + _NIFTI_FLOATS.get(datatype[0], "u1"))
        try:
            with opened() as file:
                found = len(file.read(int(start)))
                while found <= needed + _GZIP_SLACK and (chunk := file.read(_CHUNK)):
                    if kind.kind == "f":        # nifti_clib, within SimpleITK, would silently turn them into 0
                        voxels = np.frombuffer(chunk[:max(0, needed - found) // kind.itemsize * kind.itemsize],
                                               dtype=kind, count=min(len(chunk), needed - found) // kind.itemsize)
                        wrong = np.flatnonzero(~np.isfinite(voxels))
                        if len(wrong) and first_bad is None:
                            first_bad = (found - int(start)) // kind.itemsize + int(wrong[0]), float(voxels[wrong[0]])
                        bad += len(wrong)
                    found += len(chunk)
        except EOFError as error:
            raise _truncated(path, "gzip stream (cut short)", found, needed) from error
        except (OSError, zlib.error) as error:
            raise ImageError(f"{path}: gzip stream is damaged ({error}); copy or download the file again.") from error
        if found < needed:
            raise _truncated(path, "decompressed size", found, needed)
        if zipped and found > needed + _GZIP_SLACK:
            raise ImageError(f"{path}: decompressed size is more than the {needed} bytes that the header declares. "
                             "Fix the header, or write the image anew.")
        if first_bad is not None:
            at = tuple(int(i) for i in np.unravel_index(first_bad[0], sizes[::-1]))
            raise not_finite(path, at, first_bad[1], bad, math.prod(sizes))

    def check_direction(spacing_given: bool) -> None:
        qform_code, sform_code = codes
        rows = np.asarray(sform, dtype=np.float64).reshape(3, 4)
        columns = rows[:, :3]
        if qform_code > 0 and not np.isfinite(quaternion).all():
            raise ImageError(f"{path}: qform is {tuple(quaternion)}; it must be finite. Fix the header.")
        if sform_code > 0 and not np.isfinite(rows).all():
            raise ImageError(f"{path}: sform is {rows.tolist()}; it must be finite. Fix the header.")
        if sform_code <= 0 or qform_code > 0:
            return
        if len(sizes) == 3 and _singular(columns):
            raise ImageError(f"{path}: direction (sform) is {columns.tolist()}; it is singular. Fix the header.")
        lengths = np.linalg.norm(columns, axis=0)[:len(sizes)]
        if not spacing_given and not np.allclose(lengths, spacing, rtol=_SPACING_TOLERANCE):
            raise ImageError(f"{path}: pixdim is {spacing} mm, but the sform's columns are {tuple(lengths.tolist())} "
                             "mm long; they must agree. Fix the header, or pass spacing=...")

    def repair(target: Path, new: Sequence[float]) -> None:
        with opened() as file:
            content = bytearray(file.read(int(offset[0]) + count))
        at, code = _NIFTI_FIELDS[2]
        struct.pack_into(order + code, content, at, *pixdim[:1], *new, *pixdim[len(new) + 1:])
        target.write_bytes(gzip.compress(bytes(content), 1) if zipped else bytes(content))

    return Header(("dim", "channels", "pixdim"), tuple(sizes), channels, itemsize, spacing, check_data,
                  check_direction, repair)


# ------------------------------------------------------------------------------------------------ MetaImage, NRRD

_META_TYPES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4,
               "LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}


def _meta(path: Path) -> Header:
    with path.open("rb") as file:
        raw = file.read(_TEXT_HEADER_LIMIT)
    end = re.search(rb"^\s*ElementDataFile\s*=\s*([^\r\n]*)\r?\n?", raw, re.MULTILINE)
    if end is None:
        raise ImageError(f"{path}: field ElementDataFile is missing; it is not a MetaImage file. "
                         "Convert it, or give it the suffix of its real format.")
    values = dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", raw[:end.end()].decode("latin-1"), re.MULTILINE))
    data_file = values["ElementDataFile"]
    size = tuple(int(n) for n in _numbers(path, "DimSize", values.get("DimSize")))
    itemsize = _META_TYPES.get(values.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY"))
    if itemsize is None:
        raise ImageError(f"{path}: ElementType is {values.get('ElementType')}; it must be an integer or float type. "
                         "Convert the image to float.")
    channels = int(values.get("ElementNumberOfChannels", "1") or 1)
    spacing_field = next((f for f in ("ElementSpacing", "ElementSize") if f in values), "ElementSpacing")
    spacing = tuple(_numbers(path, spacing_field, values.get(spacing_field, "1 " * len(size))))
    compressed = values.get("CompressedData", "False").lower() in ("true", "1")
    needed = math.prod(size) * channels * itemsize

    def check_data() -> None:
        if values.get("BinaryData", "True").lower() in ("false", "0"):
            return
        if data_file == "LOCAL":
            found = path.stat().st_size - end.end()
        elif data_file.startswith("LIST") or "%" in data_file:
            return
        else:
            found = _detached(path, "ElementDataFile", data_file)
        stored = int(values.get("CompressedDataSize", 1)) if compressed else needed
        if found < stored:
            raise _truncated(path, "voxel data", found, stored)

    def check_direction(spacing_given: bool) -> None:
        for field in ("TransformMatrix", "Rotation", "Orientation"):
            if field in values:
                matrix = np.asarray(_numbers(path, field, values[field]))
                if matrix.size != len(size) ** 2 or _singular(matrix.reshape(len(size), len(size))):
                    raise ImageError(f"{path}: {field} is {values[field]}; it must be a {len(size)} x {len(size)} "
                                     "matrix that is not singular. Fix the header.")

    def repair(target: Path, new: Sequence[float]) -> None:
        line = f"{spacing_field} = {' '.join(map(repr, new))}".encode()
        header = re.sub(rb"^\s*" + spacing_field.encode() + rb"\s*=[^\r\n]*", line, raw[:end.end()], flags=re.M)
        if data_file != "LOCAL":
            header = header.replace(end.group(1), str(path.parent.resolve() / data_file).encode())
        target.write_bytes(header + path.read_bytes()[end.end():])

    return Header(("DimSize", "ElementNumberOfChannels", spacing_field), size, channels, itemsize, spacing, check_data,
                  check_direction, repair)


_NRRD_TYPES = {"signed char": 1, "char": 1, "uchar": 1, "unsigned char": 1, "short": 2, "ushort": 2, "int": 4,
               "uint": 4, "long long": 8, "longlong": 8, "ulonglong": 8, "float": 4, "double": 8}
_NRRD_SPATIAL = ("domain", "space", "???", "none", "")


def _nrrd(path: Path) -> Header:
    with path.open("rb") as file:
        raw = file.read(_TEXT_HEADER_LIMIT)
    end = re.search(rb"\r?\n\r?\n", raw)
    stop = len(raw) if end is None else end.end()
    if not raw.startswith(b"NRRD000") or (end is None and path.suffix.lower() == ".nrrd"):
        raise ImageError(f"{path}: header is not NRRD (it starts with {raw[:8]!r}); it must be a NRRD file. "
                         "Convert it, or give it the suffix of its real format.")
    values = {k.strip().lower(): v for k, v in
              re.findall(r"^([^#:\r\n][^:\r\n]*):[ \t]*(.*?)\s*$", raw[:stop].decode("latin-1"), re.MULTILINE)}
    kind = values.get("type", "")
    itemsize = _NRRD_TYPES.get(re.sub(r"^(signed|unsigned) (?!char)| int$", "", kind))
    if itemsize is None and (match := re.fullmatch(r"u?int(8|16|32|64)(_t)?", kind)):
        itemsize = int(match.group(1)) // 8
    if itemsize is None:
        raise ImageError(f"{path}: type is '{kind}'; it must be an integer or float type. Convert the image to float.")
    sizes = [int(n) for n in _numbers(path, "sizes", values.get("sizes"))]
    needed = math.prod(sizes) * itemsize
    vectors = re.findall(r"\([^)]*\)|none", values.get("space directions", ""))
    kinds = (values.get("kinds", "").split() + [""] * len(sizes))[:len(sizes)]
    spatial = [k.lower() in _NRRD_SPATIAL and (not vectors or v != "none")
               for k, v in zip(kinds, (vectors + [""] * len(sizes))[:len(sizes)], strict=True)]
    size = tuple(n for n, inside in zip(sizes, spatial, strict=True) if inside)
    channels = math.prod(n for n, inside in zip(sizes, spatial, strict=True) if not inside)
    directions = [_numbers(path, "space directions", v.strip("()").replace(",", " ")) for v in vectors if v != "none"]
    if directions:
        field = "space directions (lengths)"
        spacing: tuple[float, ...] | None = tuple(float(np.linalg.norm(v)) for v in directions)
    else:
        field = "spacings"
        all_spacings = values.get("spacings")
        spacing = None if all_spacings is None else tuple(
            s for s, inside in zip(_numbers(path, field, all_spacings), spatial, strict=False) if inside)

    def check_data() -> None:
        if values.get("encoding", "raw") != "raw":
            return
        data_file = values.get("data file", values.get("datafile"))
        if data_file is None:
            found = path.stat().st_size - stop
        elif data_file.startswith("LIST") or "%" in data_file:
            return
        else:
            found = _detached(path, "data file", data_file)
        if found < needed:
            raise _truncated(path, "voxel data", found, needed)

    def check_direction(spacing_given: bool) -> None:
        if directions and (len({len(v) for v in directions} | {len(size)}) > 1 or _singular(np.array(directions).T)):
            raise ImageError(f"{path}: space directions is {values['space directions']}; it must be a "
                             f"{len(size)} x {len(size)} matrix that is not singular. Fix the header.")

    def repair(target: Path, new: Sequence[float]) -> None:
        each = iter(new)
        line = "spacings: " + " ".join(repr(next(each)) if inside else "nan" for inside in spatial)
        header = re.sub(rb"^spacings:[^\r\n]*", line.encode(), raw[:stop], flags=re.M)
        if data_file := values.get("data file", values.get("datafile")):
            header = header.replace(data_file.encode(), str(path.parent.resolve() / data_file).encode())
        target.write_bytes(header + path.read_bytes()[stop:])

    return Header(("sizes", "values per voxel (kinds)", field), size, channels, itemsize, spacing, check_data,
                  check_direction, None if directions else repair)


def _numbers(path: Path, field: str, text: str | None) -> list[float]:
    try:
        if text is None:
            raise ValueError
        return [float(t) for t in text.split()]
    except ValueError:
        raise ImageError(f"{path}: {field} is {text}; it must be a list of numbers. Fix the header.") from None


def _detached(path: Path, field: str, name: str) -> int:
    """Bytes in the separate data file of a header."""
    data = path.parent / name
    if not data.is_file():
        raise ImageError(f"{path}: {field} is {name}, which does not exist. Put it beside the header.")
    return data.stat().st_size


# ------------------------------------------------------------------------------------------------------ PNG, JPEG

_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_TAIL = 4096


def _png(path: Path) -> Header:
    raw = path.read_bytes()
    if not raw.startswith(b"\x89PNG\r\n\x1a\n") or len(raw) < 33:
        raise ImageError(f"{path}: content is not PNG (it starts with {raw[:8]!r}); it must be a PNG image. "
                         "Convert it, or give it the suffix of its real format.")
    width, height, depth, color = struct.unpack_from(">IIBB", raw, 16)

    def check_data() -> None:
        if b"IEND" not in raw[-_TAIL:]:
            raise ImageError(f"{path}: IEND chunk is missing after {len(raw)} bytes; the file is truncated. "
                             "Copy or download it again.")

    return Header(("size", "channels", "spacing"), (width, height), _PNG_CHANNELS.get(color, 0), max(1, depth // 8),
                  None, check_data)


def _jpeg(path: Path) -> Header:
    raw = path.read_bytes()
    if not raw.startswith(b"\xff\xd8"):
        raise ImageError(f"{path}: content is not JPEG (it starts with {raw[:8]!r}); it must be a JPEG image. "
                         "Convert it, or give it the suffix of its real format.")
    at = 2
    while at + 9 < len(raw) and raw[at] == 0xFF:
        marker, length = raw[at + 1], struct.unpack_from(">H", raw, at + 2)[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, channels = struct.unpack_from(">HHB", raw, at + 5)
            break
        at += 1 if marker == 0xFF else 2 + length
    else:
        raise ImageError(f"{path}: frame header (SOF) is missing after {len(raw)} bytes; the file is truncated. "
                         "Copy or download it again.")

    def check_data() -> None:
        if b"\xff\xd9" not in raw[-_TAIL:]:
            raise ImageError(f"{path}: end marker (EOI) is missing after {len(raw)} bytes; the file is truncated. "
                             "Copy or download it again.")

    return Header(("size", "channels", "spacing"), (width, height), channels, 1, None, check_data)


_PARSERS: dict[tuple[str, ...], Callable[[Path], Header]] = {
    (".nii", ".nii.gz"): _nifti, (".mha", ".mhd"): _meta, (".nrrd", ".nhdr"): _nrrd, (".png",): _png,
    (".jpg", ".jpeg"): _jpeg,
}
