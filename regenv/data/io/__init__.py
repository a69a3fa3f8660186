"""Images, landmarks and transforms on disk, with every check made where data enters.

Reads NIfTI, Analyze, MetaImage, NRRD, PNG, JPEG, TIFF, BMP and DICOM series; writes NIfTI, MetaImage, NRRD and PNG.
World points are millimetres in ITK order, LPS. Every error is an :class:`ImageError` that names file, field, value and
the way out.
"""

from regenv.data.io.errors import ImageError
from regenv.data.io.headers import MAX_BYTES
from regenv.data.io.images import Image, normalize, read_image, read_labels, read_mask
from regenv.data.io.landmarks import read_landmarks
from regenv.data.io.transforms import read_transform, write_transform
from regenv.data.io.writing import write_image

__all__ = ["MAX_BYTES", "Image", "ImageError", "normalize", "read_image", "read_labels", "read_landmarks", "read_mask",
           "read_transform", "write_image", "write_transform"]
