"""What layouts share: scans and collections, and checks of what a folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from regenv.data.io.images import ImageError
from regenv.grid import Grid


@dataclass(frozen=True)
class Scan:
    """One image of a collection.

    Attributes:
        name: of the subject, unique in the collection.
        image: file of the image. labels: file of its segmentation, or None.
        mask: file of a mask outside which the image is shown as 0, or None.
        keypoints: file of voxel indices x, y, z, one point per row, CSV or text without a header, or None; row n
            corresponds to row n of the partner's.
        raw: grid of an image file without a header (int16, HU + 1024); None for images with headers. Labels of such an
            image lie on the same voxels, whatever their header says.
        first: index of the first voxel in ``keypoints``.
    """

    name: str
    image: Path
    labels: Path | None = None
    mask: Path | None = None
    keypoints: Path | None = None
    raw: Grid | None = None
    first: int = 0


@dataclass(frozen=True)
class Collection:
    """Scans, all with labels or all without.

    Attributes:
        scans: at least two.
        pairs: names of the fixed and the moving scan; None where any two subjects are a pair.
        merged: whether all labels count as one: the whole liver, tumours included.
    """

    scans: tuple[Scan, ...]
    pairs: tuple[tuple[str, str], ...] | None = None
    merged: bool = False


def existing(folder: str | Path) -> Path:
    """The folder. Raises ImageError: there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder. Check the path.")
    return folder


def once(found: dict[str, Path], name: str, path: Path) -> None:
    """Add a subject's file to ``found``. Raises ImageError: the subject has one already."""
    if name in found:
        raise ImageError(f"{path}: subject {name} has also {found[name]}; one file is needed. Move one of them away.")
    found[name] = path


def uniform(folder: Path, collection: Collection) -> Collection:
    """The collection. Raises ImageError where only some scans have labels or key-points."""
    for kind in ("labels", "keypoints"):
        without = [scan for scan in collection.scans if getattr(scan, kind) is None]
        if without and len(without) < len(collection.scans):
            raise ImageError(f"{without[0].image}: its {kind} are missing, but other images of {folder} have them. Put "
                             "them there, or move those of the others away.")
    return collection
