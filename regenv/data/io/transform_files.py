"""Transforms in files that SimpleITK reads, and that may be damaged: what is read here was looked at.

Text of linear transforms is plain. Anything else (HDF5, MATLAB, text that asks for a field of any size, vector images)
is read :mod:`~regenv.data.io.apart`.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TypeAlias

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regenv.data.io import apart, headers
from regenv.data.io.displacements import Field, checked, read_nifti_field
from regenv.data.io.errors import ImageError, reason, shown
from regenv.data.io.formats.streams import first_bytes
from regenv.grid import Grid
from regenv.stored import StoredError, read_json

TRANSFORMS = (".tfm", ".txt", ".h5", ".hdf5", ".mat")
NIFTI_FIELDS, OTHER_FIELDS = (".nii", ".nii.gz"), (".mha", ".nrrd")
FIELDS = (*NIFTI_FIELDS, *OTHER_FIELDS)
Stored: TypeAlias = "Field | sitk.Transform"

_TEXTS = (".tfm", ".txt")
_TEXT_BYTES = 1 << 20           # of a linear transform, far more than it needs
_SPLINE_BYTES = 1 << 28         # of another one
_NAMES = re.compile(rb"^\s*Transform\s*:\s*(\S*)", re.MULTILINE)
_LINEAR = re.compile(rb"\w*(Affine|Euler[23]D|Rigid[23]D|Similarity[23]D|Versor|VersorRigid3D|QuaternionRigid|"
                     rb"Translation|Identity|Composite|Scale|ScaleLogarithmic|Scale(Skew)?Versor3D)Transform_\w+|"
                     rb"MatrixOffsetTransformBase_\w+")
_ELSEWHERE = re.compile(rb"^\s*(ElementDataFile\s*=\s*+(?!LOCAL\s)|data ?file\s*:)", re.IGNORECASE | re.MULTILINE)
_TO_PARTS = """
source, folder, is_image = arguments
parts = []
def keep(image):
    np.save(f"{folder}/{len(parts)}.npy", sitk.GetArrayViewFromImage(image))
    parts.append([image.GetSpacing(), image.GetOrigin(), image.GetDirection()])
def take(transform):
    if transform.GetTransformEnum() == sitk.sitkComposite:
        composite = sitk.CompositeTransform(transform)
        for n in reversed(range(composite.GetNumberOfTransforms())):
            take(composite.GetNthTransform(n))
    elif transform.GetTransformEnum() == sitk.sitkDisplacementField:
        keep(sitk.DisplacementFieldTransform(transform).GetDisplacementField())
    else:
        sitk.WriteTransform(transform, f"{folder}/{len(parts)}.tfm")
        parts.append(transform.GetName())
try:
    if is_image == "True":
        keep(sitk.ReadImage(source))
    else:
        take(sitk.ReadTransform(source))
except (RuntimeError, MemoryError):
    sys.exit(3)
with open(f"{folder}/parts.json", "w") as file:
    json.dump(parts, file)
"""


def stored_parts(path: Path) -> list[Stored]:
    """The transforms in a file, in the order in which a point goes through them.

    Raises ImageError: the file is missing or damaged, or holds neither a transform nor a displacement field.
    """
    name = path.name.lower()
    if not path.is_file():
        raise ImageError(f"{path}: no such file. Check the path.")
    if name.endswith(NIFTI_FIELDS):
        return [read_nifti_field(path)]
    if name.endswith(OTHER_FIELDS):
        if _ELSEWHERE.search(first_bytes(path)):
            raise ImageError(f"{path}: its vectors are in another file; a field must be one file. Write it anew.")
        return _read_apart(path, is_image=True)
    if not name.endswith(TRANSFORMS):
        raise ImageError(f"{path}: format is '{path.suffix}'; it must be one of {', '.join(TRANSFORMS)}, or, with a "
                         f"displacement field, {', '.join(FIELDS)}.")
    if name.endswith(_TEXTS):
        text = _text(path)
        if all(map(_LINEAR.fullmatch, _NAMES.findall(text))):
            if len(text) > _TEXT_BYTES:
                raise unreadable(path, f"it is longer than {_TEXT_BYTES} bytes")
            return list(flattened(_parsed(path, text)))
    return _read_apart(path, is_image=False)


def flattened(transform: sitk.Transform) -> list[sitk.Transform]:
    """A transform's parts, in the order in which a point goes through them (ITK lists a composite's from the end)."""
    if transform.GetTransformEnum() != sitk.sitkComposite:
        return [transform]
    composite = sitk.CompositeTransform(transform)
    return [part for n in reversed(range(composite.GetNumberOfTransforms()))
            for part in flattened(composite.GetNthTransform(n))]


def _text(path: Path) -> bytes:
    size = path.stat().st_size
    if size > _SPLINE_BYTES:
        raise unreadable(path, f"it is longer than {_SPLINE_BYTES} bytes")
    content = first_bytes(path, size)
    if not content.isascii() or b"\0" in content:
        raise unreadable(path, "it is no plain text")
    return content


def _parsed(path: Path, text: bytes) -> sitk.Transform:
    """The transform in a text."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "transform.tfm"       # its name is one that SimpleITK takes
        copy.write_bytes(text)
        try:
            return sitk.ReadTransform(str(copy))
        except RuntimeError as error:
            raise unreadable(path, reason(error).replace(str(copy), path.name)) from error


def _read_apart(path: Path, is_image: bool) -> list[Stored]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / f"source{path.suffix.lower()}"
        source.symlink_to(path.resolve())
        try:
            status = apart.run(_TO_PARTS, path, (source, folder, str(is_image)))
        except apart.TooSlow as error:
            raise unreadable(path, str(error)) from None
        if status != 0:
            raise unreadable(path, "its content is damaged or no transform")
        try:
            parts = read_json(folder / "parts.json")
        except StoredError:
            raise unreadable(path, "its content is damaged") from None
        return [_parsed(path, _text(folder / f"{n}.tfm")) if isinstance(part, str)
                else _field(path, np.load(folder / f"{n}.npy", allow_pickle=False), *part)
                for n, part in enumerate(parts)]


def _field(path: Path, vectors: NDArray[np.float64], spacing: list[float], origin: list[float],
           direction: list[float]) -> Field:
    """A field of a place that ITK gives, which looks at nothing."""
    n = len(spacing)
    if n not in (2, 3) or vectors.ndim != n + 1 or vectors.shape[-1] != n or vectors.dtype.kind != "f" \
            or vectors.size == 0:
        raise ImageError(f"{path}: it is an image of {n} axes, and as an array {vectors.shape} of {vectors.dtype}; a "
                         "displacement field has 2 or 3 axes, and as many floats in each voxel.")
    headers.check_spacing(path, "spacing", spacing)
    headers.check_origin(path, "origin", origin)
    cosines = headers.check_direction(path, "direction", direction, np.reshape(direction, (n, n)))
    return checked(path, Field(vectors, Grid(vectors.shape[:-1], tuple(spacing), tuple(origin), cosines)))


def unreadable(path: Path, why: str) -> ImageError:
    return ImageError(f"{path}: SimpleITK cannot read it as a transform ({why}). Check that the file is complete.")


def not_linear(path: Path, name: str) -> ImageError:
    return ImageError(f"{path}: transform is {shown(name)}; a linear one (rigid, similarity, affine) is needed. Export "
                      "the linear part.")
