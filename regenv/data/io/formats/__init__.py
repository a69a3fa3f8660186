"""One file a format: each parses a header, checks it, and reads the voxels that it declares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from regenv.data.io.errors import ImageError
from regenv.data.io.formats import analyze, bmp, metaimage, nifti, nrrd, raster, tiff
from regenv.data.io.headers import MAX_BYTES, Header, volume_number

FORMATS = ("NIfTI (.nii, .nii.gz), Analyze (.hdr with .img), MetaImage (.mha, .mhd), NRRD (.nrrd, .nhdr), PNG, JPEG, "
           "TIFF, BMP or a DICOM series' folder")

_VOLUMES: dict[tuple[str, ...], Callable[[Path, int, int | None], Header]] = {
    (".nii", ".nii.gz"): nifti.header, analyze.SUFFIXES: analyze.header, (".mha", ".mhd"): metaimage.header,
    (".nrrd", ".nhdr"): nrrd.header,
}
_PICTURES: dict[tuple[str, ...], Callable[[Path, int], Header]] = {
    (".png",): raster.png_header, (".jpg", ".jpeg"): raster.jpeg_header, (".tif", ".tiff"): tiff.header,
    (".bmp",): bmp.header,
}


def inspect(path: Path, max_bytes: int = MAX_BYTES, time: int | None = None) -> Header:
    """The header of a file, by its suffix.

    Args: max_bytes: of the largest image, as float32; time: which volume, from 0, of a file that has several.
    Raises ImageError: the format is not one of these; the header cannot be read or declares what is not supported;
        the file has several volumes and none is chosen, or not the chosen one.
    """
    name = path.name.lower()
    for suffixes, parse in _VOLUMES.items():
        if name.endswith(suffixes):
            return parse(path, max_bytes, time)
    for suffixes, parse_picture in _PICTURES.items():
        if name.endswith(suffixes):
            header = parse_picture(path, max_bytes)
            volume_number(path, "size", header.size, 1, time)
            return header
    raise ImageError(f"{path}: format is '{path.suffix}'; it must be one of {FORMATS}.")
