"""Public collections of prostate MR as subjects for organ-centred registration: PROMISE12 and Prostate-3T.

The benchmark of Krebs et al. 2017 took 25 subjects from PROMISE12 and 16 from Prostate-3T, and left out those scanned
with a rectal probe and those in both collections: name the wanted ones by ``cases``. Then, with
:func:`regenv.data.banks.pelvises.prepared_population`::

    subjects = promise12("PROMISE12/train") + prostate3t("Prostate-3T", "NCI-ISBI/training")
    population = prepared_population(subjects, ndim=3)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from regenv.data.banks.pelvises import ORGAN, Subject
from regenv.data.io.images import Image, ImageError, read_image, read_labels
from regenv.data.layouts.common import existing

_PROMISE12_ORGAN = (1,)
_PROSTATE3T_ORGAN = (1, 2)      # peripheral zone, central gland
_PATIENT = re.compile(r"Prostate3T-\d+-\d+")


def promise12(folder: str | Path, cases: Sequence[str] | None = None) -> tuple[Subject, ...]:
    """PROMISE12 (Litjens et al. 2014): ``CaseNN.mhd`` and ``CaseNN_segmentation.mhd`` with their .raw in one folder.

    Args:
        folder: of the files.
        cases: names such as "Case00", in the order wanted; default all, by name.

    Raises:
        ImageError: the folder has no case, or not one of ``cases``; a segmentation is missing, without the organ, or on
            another grid than its image; a file is unreadable or truncated.
    """
    folder = existing(folder)
    images = {path.stem: path for path in sorted(folder.glob("Case*.mhd")) if not path.stem.endswith("_segmentation")}
    picked = _picked(folder, images, cases, "CaseNN.mhd")
    pairs = {name: (path, path.with_name(f"{name}_segmentation.mhd")) for name, path in picked.items()}
    return _subjects(pairs, _PROMISE12_ORGAN)


def prostate3t(folder: str | Path, segmentations: str | Path | None = None, cases: Sequence[str] | None = None
               ) -> tuple[Subject, ...]:
    """Prostate-3T (Litjens et al. 2015) with the segmentations of the NCI-ISBI 2013 challenge.

    Args:
        folder: holds, at any depth, one folder a patient with one DICOM series:
            ``Prostate3T-01-0001/<study>/<series>/*.dcm``.
        segmentations: holds, at any depth, ``Prostate3T-01-0001.nrrd`` or ``..._truth.nrrd``; label 1 is the peripheral
            zone, 2 the central gland, and both are the organ. Default: ``folder``.
        cases: names such as "Prostate3T-01-0001", in the order wanted; default all, by name.

    Raises:
        ImageError: as :func:`promise12`; or a patient has no DICOM series, or several.
    """
    folder = existing(folder)
    drawn = existing(folder if segmentations is None else segmentations)
    patients = {path.name: path for path in sorted(folder.rglob("Prostate3T-*"))
                if path.is_dir() and _PATIENT.fullmatch(path.name)}
    picked = _picked(folder, patients, cases, "Prostate3T-NN-NNNN/")
    found = {path.name.removesuffix(".nrrd").removesuffix("_truth"): path
             for path in sorted(drawn.rglob("Prostate3T-*.nrrd"))}
    pairs = {name: (_series(path), found.get(name, drawn / f"{name}.nrrd")) for name, path in picked.items()}
    return _subjects(pairs, _PROSTATE3T_ORGAN)


def _picked(folder: Path, found: Mapping[str, Path], cases: Sequence[str] | None, layout: str) -> dict[str, Path]:
    if not found:
        raise ImageError(f"{folder}: number of cases is 0; at least one {layout} is needed. Check the path, or unpack "
                         "the archives into it.")
    for name in cases or ():
        if name not in found:
            raise ImageError(f"{folder}: case {name!r} is missing; the folder has {', '.join(found)}. Check cases=...")
    return {name: found[name] for name in (found if cases is None else cases)}


def _series(patient: Path) -> Path:
    """The one folder with DICOM files inside a patient's folder."""
    folders = sorted({path.parent for path in patient.rglob("*.dcm") if not path.name.startswith(".")})
    if len(folders) != 1:
        shown = [str(path.relative_to(patient)) for path in folders[:3]]
        raise ImageError(f"{patient}: number of DICOM series is {len(folders)} {shown}; one is needed. Keep the "
                         "T2-weighted axial series, as <study>/<series>/*.dcm.")
    return folders[0]


def _subjects(pairs: Mapping[str, tuple[Path, Path]], organ: Sequence[int]) -> tuple[Subject, ...]:
    """The subjects' images and segmentations. A missing segmentation is found before the first image is read."""
    for image, segmentation in pairs.values():
        if not segmentation.is_file():
            raise ImageError(f"{image}: its segmentation {segmentation} is missing. Put it there, or leave the case "
                             "out by cases=...")
    return tuple(Subject(name, read_image(image), _organ(read_labels(segmentation), organ))
                 for name, (image, segmentation) in pairs.items())


def _organ(labels: Image, organ: Sequence[int]) -> Image:
    """The organ's labels merged into one, uint8."""
    mask = np.isin(labels.array, organ)
    if not mask.any():
        raise ImageError(f"{labels.path}: labels are {np.unique(labels.array).tolist()}; the organ's, "
                         f"{' or '.join(map(str, organ))}, are absent. Check the segmentation, or leave the case out "
                         "by cases=...")
    return Image(np.where(mask, np.uint8(ORGAN), np.uint8(0)), labels.grid, labels.path)
