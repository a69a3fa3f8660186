"""The stored numbers of DICOM files: uncompressed and RLE frames by pydicom, those of the JPEG family by GDCM.

GDCM gets a file of its own for each frame, with nothing in it but what was checked here.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder

from regenv.data.io.dicom_slices import Pixels, damaged, parsed, unsupported
from regenv.data.io.errors import ImageError, reason

_PLAIN = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless,
         uid.JPEGLSNearLossless, uid.JPEG2000Lossless, uid.JPEG2000)
_JPEG_END = b"\xff\xd9"


def stored_values(pixels: Pixels) -> NDArray[Any]:
    """The numbers of a file as it stores them, (frames, rows, columns) of an integer type; see :func:`brightness`.

    Raises ImageError: the pixels are incomplete, damaged or compressed in a way that is not supported.
    """
    if pixels.syntax not in (*_PLAIN, *_JPEG, uid.RLELossless):
        raise unsupported(pixels.path, pixels.syntax)
    source = io.BytesIO(pixels.path.read_bytes())   # from which no more can be asked than there is
    element = parsed(pixels.path, source, ["PixelData"], stop_before_pixels=False).get_item("PixelData")
    content = element.value if element is not None and isinstance(element.value, bytes) else b""
    if pixels.syntax in _PLAIN:
        needed = pixels.frames * pixels.rows * pixels.columns * pixels.bits_allocated // 8
        if not needed <= len(content) <= needed + needed % 2:
            raise _incomplete(pixels, f"is {len(content)} bytes, but the header declares {needed}")
        return _decoded(pixels, content, "OB" if element.VR == "OB" else "OW")
    frames = _frames(pixels, content)
    if pixels.syntax in _JPEG:
        return np.stack([_by_gdcm(pixels, frame) for frame in frames])
    return _decoded(pixels, content, "OB")


def brightness(pixels: Pixels, stored: NDArray[Any]) -> NDArray[Any]:
    """Stored numbers before rescaling, wide enough to be counted with; MONOCHROME1 inverted, so that white is most."""
    wide: NDArray[Any] = stored.astype(np.int64 if pixels.bits_allocated == 32 else np.int32)
    return (-1 if pixels.signed else 2**pixels.bits_stored - 1) - wide if pixels.inverted else wide


def _frames(pixels: Pixels, content: bytes) -> list[bytes]:
    """The compressed frames, each of them whole."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frames = list(generate_frames(content, number_of_frames=pixels.frames))
    except Exception as error:
        raise damaged(pixels.path, error) from error
    if len(frames) != pixels.frames:
        raise _incomplete(pixels, f"has {len(frames)} frames, but NumberOfFrames is {pixels.frames}")
    for number, frame in enumerate(frames):
        if pixels.syntax in _JPEG and not frame.rstrip(b"\0").endswith(_JPEG_END):
            raise _incomplete(pixels, f"ends before the end of its JPEG stream in frame {number + 1}")
    return frames


def _incomplete(pixels: Pixels, fault: str) -> ImageError:
    return ImageError(f"{pixels.path}: PixelData {fault}; the file is truncated or damaged. Copy or export it again.")


def _decoded(pixels: Pixels, content: bytes, vr: str) -> NDArray[Any]:
    """By pydicom's own decoders, which also clear unused bits; (frames, rows, columns)."""
    options: Any = {
        "rows": pixels.rows, "columns": pixels.columns, "number_of_frames": pixels.frames, "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2", "bits_allocated": pixels.bits_allocated,
        "bits_stored": pixels.bits_stored, "pixel_representation": int(pixels.signed), "pixel_keyword": "PixelData",
        "pixel_vr": vr, "view_only": True}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array, _ = get_decoder(pixels.syntax).as_array(content, raw=True, **options)
    except Exception as error:
        raise damaged(pixels.path, error) from error
    return array.reshape(pixels.frames, pixels.rows, pixels.columns)


def _by_gdcm(pixels: Pixels, frame: bytes) -> NDArray[Any]:
    """One frame of the JPEG family, (rows, columns)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.dcm"
        _bare(pixels, frame).save_as(path, enforce_file_format=True)
        try:
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
        except RuntimeError as error:
            raise ImageError(f"{pixels.path}: PixelData cannot be decoded as {pixels.syntax.name} ({reason(error)}); "
                             "the file is damaged. Copy or export it again.") from error
    if array.size != pixels.rows * pixels.columns or array.shape[-2:] != (pixels.rows, pixels.columns):
        raise ImageError(f"{pixels.path}: Rows x Columns is {pixels.rows} x {pixels.columns}, but PixelData holds "
                         f"{' x '.join(map(str, array.shape[-2:]))}; the file is damaged. Copy or export it again.")
    return array.reshape(pixels.rows, pixels.columns)


def _bare(pixels: Pixels, frame: bytes) -> Dataset:
    """A DICOM file that holds one compressed frame and no more than its decoding needs."""
    bare = Dataset()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = pixels.syntax
    bare.SOPClassUID, bare.SOPInstanceUID = uid.SecondaryCaptureImageStorage, uid.UID("1.2.3")
    bare.SamplesPerPixel, bare.PhotometricInterpretation = 1, "MONOCHROME2"
    bare.Rows, bare.Columns = pixels.rows, pixels.columns
    bare.BitsAllocated, bare.PixelRepresentation = pixels.bits_allocated, int(pixels.signed)
    bare.BitsStored, bare.HighBit = pixels.bits_stored, pixels.bits_stored - 1
    bare.PixelData = encapsulate([frame])
    bare["PixelData"].VR, bare["PixelData"].is_undefined_length = "OB", True
    return bare
