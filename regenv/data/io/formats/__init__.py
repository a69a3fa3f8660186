"""One file a format: each parses a header and tells how its data, direction and spacing are checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from regenv.data.io.errors import ImageError
from regenv.data.io.formats import metaimage, nifti, nrrd, raster
from regenv.data.io.headers import Header

FORMATS = "NIfTI (.nii, .nii.gz), MetaImage (.mha, .mhd), NRRD (.nrrd, .nhdr), PNG, JPEG or a DICOM series' folder"

_PARSERS: dict[tuple[str, ...], Callable[[Path], Header]] = {
    (".nii", ".nii.gz"): nifti.header, (".mha", ".mhd"): metaimage.header, (".nrrd", ".nhdr"): nrrd.header,
    (".png",): raster.png_header, (".jpg", ".jpeg"): raster.jpeg_header,
}


def inspect(path: Path) -> Header:
    """The header of a file, by its suffix.

    Raises:
        ImageError: the format is not one of these, or the header cannot be read.
    """
    name = path.name.lower()
    for suffixes, parse in _PARSERS.items():
        if name.endswith(suffixes):
            return parse(path)
    raise ImageError(f"{path}: format is '{path.suffix}'; it must be one of {FORMATS}.")
