"""What a file is (image, transform, displacement field, agent's checkpoint), as a dictionary and as text."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regagents.agents import resolve
from regagents.common.checkpoints import load_card
from regagents.registration import fields
from regagents.registration.apply import header_of
from regagents.registration.statement import read_statement
from regenv.data.io import apart
from regenv.data.io.displacements import Field
from regenv.data.io.errors import ImageError
from regenv.data.io.transform_files import FIELDS, TRANSFORMS
from regenv.data.io.transforms import Part, kind, kinds, read_parts
from regenv.grid import Grid
from regenv.stored import StoredError, read_json

Told = dict[str, Any]
_CHECKPOINT = ".safetensors"
_UNSTATED = "points of the fixed image to points of the moving image, mm, LPS, as ITK's do; no JSON beside it says so"
_AS_ITK_SEES = """
source, target = arguments
try:
    image = sitk.ReadImage(source)
except (RuntimeError, MemoryError):
    sys.exit(3)
values = sitk.GetArrayViewFromImage(image)
values = values[np.isfinite(values)]
told = {"size": image.GetSize(), "spacing": image.GetSpacing(), "origin": image.GetOrigin(),
        "direction": image.GetDirection(), "components": image.GetNumberOfComponentsPerPixel(),
        "type": image.GetPixelIDTypeAsString(),
        "range": [float(values.min()), float(values.max())] if values.size else None}
with open(target, "w") as file:
    json.dump(told, file)
"""


def describe(path: str | Path) -> Told:
    """What a file or a DICOM series' folder is, JSON-able; "what" says image, transform or checkpoint.

    Args: path: also the name of shipped weights. Raises ImageError, CheckpointError: it cannot be read.
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith(_CHECKPOINT) or (not path.exists() and resolve(path).is_file()):
        return _checkpoint(resolve(path))
    if not path.exists():
        raise ImageError(f"{path}: no such file or folder. Check the path.")
    if name.endswith(TRANSFORMS):
        return _transform(path, read_parts(path))
    try:
        return _image(path)
    except ImageError as error:
        return _other_image(path, error)


# --------------------------------------------------------------------------------------------------------------- images

def _image(path: Path) -> Told:
    """An image that can be registered."""
    header = header_of(path)
    array = header.voxels()
    finite = array[np.isfinite(array)]
    grid = Grid(header.size[::-1], header.spacing or (1.0,) * len(header.size), header.origin, header.direction)
    return {"what": "image", "file": str(path), **_place(grid), "spacing_in_file": header.spacing is not None,
            "type": str(array.dtype), "components": 1, "volumes": 1,
            "range": [float(finite.min()), float(finite.max())] if finite.size else None,
            "not_finite": int(array.size - finite.size), "refused": None}


def _place(grid: Grid) -> Told:
    n = grid.ndim
    direction = np.asarray(grid.direction).reshape(n, n)
    off = np.degrees(np.arccos(np.clip(np.abs(direction).max(0), 0, 1)))
    return {"size": list(grid.size), "spacing_mm": list(grid.spacing), "extent_mm": list(grid.extent),
            "origin_mm": list(grid.origin), "center_mm": grid.center.tolist(), "direction": list(grid.direction),
            "orientation": orientation(direction), "oblique_degrees": round(float(off.max()), 3)}


def orientation(direction: NDArray[np.float64]) -> str | None:
    """Where the axes lead, the nearest of Left/Right, Posterior/Anterior, Superior/Inferior: "LPS" of the identity;
    None in 2D, where nothing says what the plane is."""
    if len(direction) != 3:
        return None
    return str(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(direction.ravel().tolist()))


def _other_image(path: Path, refused: ImageError) -> Told:
    """A displacement field, or an image that cannot be registered, as ITK sees it. Raises what the reader of images
    raised where ITK cannot read it either."""
    if path.name.lower().endswith(FIELDS):
        try:
            return _transform(path, read_parts(path))
        except ImageError:
            pass
    seen = None if path.is_dir() else _seen(path)
    if seen is None:
        raise refused
    axes, several = len(seen["size"]), len(seen["size"]) == 4
    n = min(axes, 3)
    direction = np.asarray(seen["direction"]).reshape(axes, axes)[:n, :n]
    return {"what": "image", "file": str(path), "size": seen["size"][:n], "spacing_mm": seen["spacing"][:n],
            "origin_mm": seen["origin"][:n], "direction": direction.ravel().tolist(),
            "orientation": orientation(direction), "type": seen["type"], "components": seen["components"],
            "volumes": seen["size"][3] if several else 1, "volume_spacing": seen["spacing"][3] if several else None,
            "range": seen["range"], "refused": str(refused)}


def _seen(path: Path) -> Told | None:
    """What SimpleITK says of an image; None where it cannot read it."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / f"image{''.join(path.suffixes[-2:]).lower()}", Path(folder) / "seen.json"
        source.symlink_to(path.resolve())       # alone in a folder: ITK may read a neighbour instead
        try:
            if apart.run(_AS_ITK_SEES, path, (source, target)) != 0:
                return None
            return dict(read_json(target))
        except (apart.TooSlow, StoredError):
            return None


# ----------------------------------------------------------------------------------------------------------- transforms

def _transform(path: Path, parts: Sequence[Part]) -> Told:
    stated = read_statement(path)
    fixed = (stated or {}).get("fixed")
    center = _center(fixed)
    return {"what": "transform", "file": str(path), "kind": kinds(parts),
            "ndim": parts[0].grid.ndim if isinstance(parts[0], Field) else _dimension(parts[0]),
            "maps": stated["maps"] if stated else _UNSTATED, "stated": stated,
            "parts": [_part(part, center) for part in parts]}


def _dimension(part: NDArray[np.float64] | sitk.Transform) -> int:
    return len(part) - 1 if isinstance(part, np.ndarray) else int(part.GetDimension())


def _center(fixed: Any) -> NDArray[np.float64] | None:
    """The middle of a stated image, mm; None where it states none."""
    try:
        grid = Grid(tuple(fixed["size"][::-1]), tuple(fixed["spacing"]), tuple(fixed["origin"]),
                    tuple(fixed["direction"]))
        return grid.center
    except (TypeError, KeyError, ValueError):
        return None


def _part(part: Part, center: NDArray[np.float64] | None) -> Told:
    if isinstance(part, np.ndarray):
        return {"kind": kind(part), **decomposed(part, center)}
    if not isinstance(part, Field):
        return {"kind": kind(part), "parameters": len(part.GetParameters())}
    lengths, determinants = np.linalg.norm(part.vectors, axis=-1), fields.determinants(part)
    return {"kind": kind(part), **_place(part.grid), "folded": float((determinants <= 0).mean()),
            "displacement_mm": {"median": float(np.median(lengths)), "max": float(lengths.max())},
            "determinant": {"least": float(determinants.min()), "most": float(determinants.max())}}


def decomposed(matrix: NDArray[np.float64], center: NDArray[np.float64] | None = None) -> Told:
    """A linear transform (D+1, D+1) as shears, then scales along the world's axes, then a rotation, about a centre;
    then a translation, which is how far it moves the centre, mm.

    Args: center: (D,), default the world's origin.
    Returns: "rotation_degrees" about "rotation_axis" (3D); "euler_degrees", the angles x, y, z of ITK's
        Euler3DTransform (R = Rz Rx Ry); "scales", negative along x of a mirrored one; "shears" (xy[, xz, yz]);
        "determinant".
    """
    n = len(matrix) - 1
    about = np.zeros(n) if center is None or len(center) != n else center
    linear = matrix[:n, :n]
    rotation, upper = np.linalg.qr(linear)
    signs = np.sign(np.diag(upper))
    signs[0] *= np.sign(np.linalg.det(rotation) * np.prod(signs))
    rotation, upper = rotation * signs, signs[:, None] * upper
    scales = np.diag(upper)
    told: Told = {"matrix": matrix.tolist(), "center_mm": about.tolist(),
                  "center": "the fixed image's" if center is not None else "the world's origin",
                  "translation_mm": (linear @ about + matrix[:n, n] - about).tolist(), "scales": scales.tolist(),
                  "shears": (upper / scales[:, None])[np.triu_indices(n, 1)].tolist(),
                  "determinant": float(np.linalg.det(linear))}
    if n == 2:
        return told | {"rotation_degrees": float(np.degrees(np.arctan2(rotation[1, 0], rotation[0, 0])))}
    euler = sitk.Euler3DTransform()
    euler.SetMatrix(rotation.ravel().tolist(), 1e-6)
    versor = sitk.VersorTransform()
    versor.SetMatrix(rotation.ravel().tolist(), 1e-6)
    axis = np.asarray(versor.GetVersor()[:3])
    length = float(np.linalg.norm(axis))
    return told | {"rotation_degrees": float(np.degrees(2 * np.arctan2(length, versor.GetVersor()[3]))),
                   "rotation_axis": (axis / length).tolist() if length > 0 else None,
                   "euler_degrees": np.degrees([euler.GetAngleX(), euler.GetAngleY(), euler.GetAngleZ()]).tolist()}


# ---------------------------------------------------------------------------------------------------------- checkpoints

def _checkpoint(path: Path) -> Told:
    return {"what": "checkpoint", "file": str(path), "bytes": path.stat().st_size, "card": load_card(path)}


# ----------------------------------------------------------------------------------------------------------------- text

def text(told: Mapping[str, Any]) -> str:
    """What :func:`describe` gives, in lines for people."""
    lines = {"image": _image_lines, "transform": _transform_lines, "checkpoint": _checkpoint_lines}[told["what"]](told)
    return "\n".join([f"{told['file']}: {lines[0]}", *(f"  {line}" for line in lines[1:])])


def _numbers(values: Sequence[float], digits: int = 2) -> str:
    return f"({', '.join(f'{value + 0.0:.{digits}f}' for value in values)})"


def _by(values: Sequence[Any]) -> str:
    return " x ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _image_lines(told: Mapping[str, Any]) -> list[str]:
    volumes = f", {told['volumes']} volumes {told['volume_spacing']:g} s (or units of the file) apart" \
        if told["volumes"] > 1 else ""
    values = "1 number" if told["components"] == 1 else f"{told['components']} numbers"
    low_high = "no finite values" if told["range"] is None else "from {:g} to {:g}".format(*told["range"])
    missing = told.get("not_finite", 0)
    lines = [f"image, {len(told['size'])}D, {_by(told['size'])} voxels{volumes}", *_place_lines(told),
             f"voxels: {values} of {told['type']}, {low_high}{f', {missing} not finite' if missing else ''}"]
    if not told.get("spacing_in_file", True):
        lines.append("the file has no spacing; 1 mm is taken unless --spacing says otherwise")
    return lines if told["refused"] is None else [*lines, f"cannot be registered as it is: {told['refused']}"]


def _place_lines(told: Mapping[str, Any]) -> list[str]:
    oblique = told.get("oblique_degrees", 0.0)
    turned = f", {oblique:.1f} degrees oblique" if oblique > 0.05 else ""
    axes = f"axes lead to {told['orientation']}{turned}" if told["orientation"] else \
        f"direction {_numbers(told['direction'], 4)}"
    extent = f", {_by([round(e, 1) for e in told['extent_mm']])} mm from edge to edge" if "extent_mm" in told else ""
    return [f"spacing {_by([round(s, 4) for s in told['spacing_mm']])} mm{extent}",
            f"first voxel at {_numbers(told['origin_mm'])} mm (LPS), {axes}"]


def _transform_lines(told: Mapping[str, Any]) -> list[str]:
    lines = [f"transform, {told['ndim']}D: {told['kind']}", f"maps {told['maps']}"]
    for part in told["parts"]:
        lines += _matrix_lines(part) if "matrix" in part else _field_lines(part) if "folded" in part else \
            [f"{part['kind']}: {part['parameters']} parameters"]
    stated = told["stated"] or {}
    lines += [f"{name}: {place['path']}, {_by(place['size'])} voxels" for name in ("fixed", "moving")
              if isinstance(place := stated.get(name), dict) and {"path", "size"} <= place.keys()]
    if isinstance(trip := stated.get("round_trip_mm"), dict):
        lines.append("round trip: " + ", ".join(f"{name} {value:.2g} mm" for name, value in trip.items()
                                                  if isinstance(value, float)))
    return lines


def _matrix_lines(part: Mapping[str, Any]) -> list[str]:
    axis = f" about {_numbers(part['rotation_axis'], 3)}" if part.get("rotation_axis") else ""
    euler = f"; ITK's Euler angles x, y, z {_numbers(part['euler_degrees'])}" if "euler_degrees" in part else ""
    lines = [f"{part['kind']}: rotation {part['rotation_degrees']:.2f} degrees{axis}{euler}",
             f"  translation {_numbers(part['translation_mm'])} mm, of the centre {_numbers(part['center_mm'])} mm "
             f"({part['center']})"]
    if part["kind"] not in ("identity", "translation", "rigid"):
        lines.append(f"  scales {_numbers(part['scales'], 4)}, shears {_numbers(part['shears'], 4)}, volume x "
                     f"{part['determinant']:.4f}")
    return lines


def _field_lines(part: Mapping[str, Any]) -> list[str]:
    lengths, determinant = part["displacement_mm"], part["determinant"]
    return [f"displacement field: {_by(part['size'])} voxels; {lengths['median']:.2f} mm in the median, at most "
            f"{lengths['max']:.2f} mm; the identity beyond them", *(f"  {line}" for line in _place_lines(part)),
            f"  volume x {determinant['least']:.3f} to {determinant['most']:.3f}; {part['folded']:.3%} of the voxels "
            "fold"]


def _checkpoint_lines(told: Mapping[str, Any]) -> list[str]:
    card = told["card"]
    named = {"environment": "env", "trained by": "command", "from": "init", "seed": "seed", "samples": "samples",
             "seconds": "seconds", "machine": "machine", "licence": "licence"}
    return [f"checkpoint of {card.get('algorithm', 'an agent')}, {told['bytes'] / 1e6:.1f} MB",
            *(f"{name}: {format(card[key], ',') if isinstance(card[key], int) else card[key]}"
              for name, key in named.items() if card.get(key) is not None)]
