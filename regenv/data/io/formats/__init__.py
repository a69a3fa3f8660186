"""One file a format: each parses a header, checks it, and reads the voxels that it declares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from regenv.data.io.errors import ImageError
from regenv.data.io.formats import analyze, metaimage, nifti, nrrd, raster
from regenv.data.io.headers import MAX_BYTES, Header

FORMATS = ("NIfTI (.nii, .nii.gz), Analyze (.hdr with .img), MetaImage (.mha, .mhd), NRRD (.nrrd, .nhdr), PNG, JPEG or "
           "a DICOM series' folder")

_PARSERS: dict[tuple[str, ...], Callable[[Path, int], Header]] = {
    (".nii", ".nii.gz"): nifti.header, analyze.SUFFIXES: analyze.header, (".mha", ".mhd"): metaimage.header,
    (".nrrd", ".nhdr"): nrrd.header, (".png",): raster.png_header, (".jpg", ".jpeg"): raster.jpeg_header,
}


def inspect(path: Path, max_bytes: int = MAX_BYTES) -> Header:
    """The header of a file, by its suffix.

    Args: max_bytes: of the largest image, as float32.
    Raises ImageError: the format is not one of these; the header cannot be read or declares what is not supported.
    """
    name = path.name.lower()
    for suffixes, parse in _PARSERS.items():
        if name.endswith(suffixes):
            return parse(path, max_bytes)
    raise ImageError(f"{path}: format is '{path.suffix}'; it must be one of {FORMATS}.")
