"""Public collections of brains and livers, and Learn2Reg's data sets: LPBA40, ADNI and the like, LiTS, SLIVER07.

Only names are read here, and Learn2Reg's JSON; missing label files are found at once. The scans are read by
:class:`regenv.data.sources.folders.FolderPairs`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regenv.data.io.formats.analyze import SUFFIXES as TWO_FILES
from regenv.data.io.images import ImageError
from regenv.data.layouts.common import Collection, Scan, existing, once, uniform
from regenv.stored import StoredError, read_json

_NIFTI = (".nii", ".nii.gz")
_SUBJECT = re.compile(r"S(\d\d)\.")
_JSON_BYTES = 1 << 24
_LEARN2REG_LISTS = {"train": ("training_paired_images",), "val": ("registration_val",), "test": ("registration_test",)}


def lpba40(folder: str | Path) -> Collection:
    """LPBA40 (Shattuck et al. 2008): skull-stripped scans in delineation space with 56 structures, ``S01`` to ``S40``.

    Files, at any depth: ``S01.delineation.skullstripped.hdr`` and ``.img`` (or ``.nii.gz``), beside them
    ``S01.delineation.structure.label.hdr`` (or the like). The paper's atlas is S01.

    Raises ImageError: no such folder, fewer than two subjects, or a subject without labels, or with two files.
    """
    folder = existing(folder)
    found = [path for path in sorted(folder.rglob("S[0-9][0-9].*")) if path.is_file() and
             path.name.lower().endswith((*_NIFTI, ".hdr", ".hdr.gz"))]
    kinds: tuple[dict[str, Path], dict[str, Path]] = {}, {}
    for path in found:
        match = _SUBJECT.match(path.name)
        for kind, is_it in zip(kinds, ("skullstripped" in path.name, ".label." in path.name), strict=True):
            if match and is_it:
                once(kind, f"S{match[1]}", path)
    return _collected(folder, kinds[0], kinds[1], "SNN.delineation.skullstripped.hdr")


def subject_folders(folder: str | Path, image: str = "T1w", labels: str | None = None) -> Collection:
    """ADNI, ABIDE, ADHD and the like: one NIfTI a subject, in a folder a subject (BIDS ``sub-01/[ses-*/]anat/`` or any
    other depth), or all in one folder. Where there are folders ``sub-*``, other folders beside them are left out.

    Args:
        folder: of the collection.
        image: part of the image's name, where a subject has several files.
        labels: part of the label file's name, such as "aseg" or "dseg"; None for images without labels.

    Raises ImageError: as :func:`lpba40`; or a subject has several images, and ``image`` is not part of just one name.
    """
    folder = existing(folder)
    files: dict[str, list[Path]] = {}
    bids = any(path.is_dir() for path in folder.glob("sub-*"))
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and path.name.endswith(_NIFTI) and (not bids or parts[0].startswith("sub-")):
            files.setdefault(parts[0] if len(parts) > 1 else _flat_name(path, labels), []).append(path)
    images: dict[str, Path] = {}
    segmentations: dict[str, Path] = {}
    for name, paths in files.items():
        marked = [path for path in paths if labels is not None and labels in path.name]
        for path in marked:
            once(segmentations, name, path)
        images[name] = _the_one(folder / name, [path for path in paths if path not in marked], image)
    return _collected(folder, images, None if labels is None else segmentations, "<subject>/*.nii.gz")


def lits(folder: str | Path) -> Collection:
    """LiTS (Bilic et al. 2019): ``volume-N.nii`` and ``segmentation-N.nii``, at any depth; liver and tumours merged.

    Raises ImageError: as :func:`lpba40`.
    """
    return _numbered(folder, "volume", "segmentation", _NIFTI, "volume-N.nii")


def sliver(folder: str | Path) -> Collection:
    """SLIVER07 (Heimann et al. 2009): ``liver-orig001.mhd`` and ``liver-seg001.mhd`` with their .raw, at any depth.

    Raises ImageError: as :func:`lpba40`.
    """
    return _numbered(folder, "liver-orig", "liver-seg", (".mhd",), "liver-origNNN.mhd")


def learn2reg(folder: str | Path, split: str = "train") -> Collection:
    """A Learn2Reg data set (Hering et al. 2022): a folder with one ``*dataset.json``.

    Its list ``training_paired_images`` (split "train"), ``registration_val`` ("val") or ``registration_test`` ("test")
    names the pairs. Without it, any two images of the list ``training`` are a pair for training. Labels, masks and
    key-points are those that an entry names, or those in ``labelsTr``, ``masksTr``, ``keypointsTr`` for an image in
    ``imagesTr``.

    Raises ImageError: the JSON is missing, not one, unreadable or without pairs; or an entry lacks its image, or names
        a file that is not there.
    """
    folder = existing(folder)
    if split not in _LEARN2REG_LISTS:
        raise ImageError(f"{folder}: split is {split!r}; it must be one of {', '.join(_LEARN2REG_LISTS)}.")
    path, content = _json(folder)
    singles = _entries(path, content, "training") + _entries(path, content, "test")
    named = {str(entry["image"]): entry for entry in singles if "image" in entry}
    listed = [entry for key in _LEARN2REG_LISTS[split] for entry in _entries(path, content, key)]
    unpaired = [entry for entry in _entries(path, content, "training") if split == "train" and not listed]
    scans: dict[str, Scan] = {}

    def scan(image: str) -> str:
        file = _inside(path, folder, image)
        name = _stem(file)
        if name not in scans:
            labels, mask, keypoints = (_sidecar(path, folder, named.get(image, {}), image, kind)
                                       for kind in ("label", "mask", "keypoints"))
            scans[name] = Scan(name, file, labels, mask, keypoints)
        return name

    pairs = tuple((scan(_field(path, entry, "fixed")), scan(_field(path, entry, "moving"))) for entry in listed)
    for entry in unpaired:
        scan(_field(path, entry, "image"))
    if len(scans) < 2:
        raise ImageError(f"{path}: number of pairs is 0 for split {split!r}; the list {_LEARN2REG_LISTS[split][0]!r}"
                         f"{' or two images in ' + repr('training') if split == 'train' else ''} is needed, but the "
                         f"file has {', '.join(map(repr, content)) or 'nothing'}. Take another split.")
    return uniform(folder, Collection(tuple(scans.values()), pairs or None))


# ------------------------------------------------------------------------------------------------------------- folders

def _numbered(folder: str | Path, image: str, segmentation: str, suffixes: Sequence[str], layout: str) -> Collection:
    folder = existing(folder)
    kinds: tuple[dict[str, Path], dict[str, Path]] = {}, {}
    for path in sorted(folder.rglob("*")):
        for kind, prefix in zip(kinds, (image, segmentation), strict=True):
            match = re.fullmatch(rf"{prefix}-?(\d+)", _stem(path))
            if match and path.name.endswith(tuple(suffixes)):
                once(kind, match[1], path)
    ordered = {name: kinds[0][name] for name in sorted(kinds[0], key=int)}
    return _collected(folder, ordered, kinds[1], layout, merged=True)


def _collected(folder: Path, images: Mapping[str, Path], labels: Mapping[str, Path] | None, layout: str,
               merged: bool = False) -> Collection:
    """The collection of images by subject, with their labels unless ``labels`` is None. Raises ImageError for gaps."""
    if len(images) < 2:
        raise ImageError(f"{folder}: number of subjects is {len(images)}; a pair needs at least two {layout}. Check "
                         "the path, or unpack the archives into it.")
    for name, path in images.items():
        if labels is not None and name not in labels:
            raise ImageError(f"{path}: its labels are missing; subject {name} has none in {folder}. Put them there, or "
                             "leave the subject out by moving its image away.")
    return Collection(tuple(Scan(name, path, None if labels is None else labels[name])
                            for name, path in images.items()), merged=merged)


def _the_one(subject: Path, paths: Sequence[Path], part: str) -> Path:
    """A subject's only image, or the only one with ``part`` in its name."""
    chosen = paths if len(paths) == 1 else [path for path in paths if part in path.name]
    if len(chosen) != 1:
        shown = ", ".join(path.name for path in (chosen or paths)[:4]) or "none"
        raise ImageError(f"{subject}: number of images is {len(chosen)} ({shown}); one is needed. Say which by a part "
                         "of its name, image=...")
    return chosen[0]


def _flat_name(path: Path, labels: str | None) -> str:
    """The subject of a file in a folder of many subjects: the file's name, without the part that marks labels."""
    stem = _stem(path)
    return stem if labels is None else re.sub(rf"[_.-]?{re.escape(labels)}", "", stem)


def _stem(path: Path) -> str:
    for suffix in (*_NIFTI[::-1], *TWO_FILES, path.suffix):
        if suffix and path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.name


# ----------------------------------------------------------------------------------------------------------- Learn2Reg

def _json(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    found = sorted(folder.glob("*dataset.json"))
    if len(found) != 1:
        raise ImageError(f"{folder}: number of *dataset.json is {len(found)}; one is needed. Check the path.")
    try:
        content = read_json(found[0], _JSON_BYTES)
    except StoredError as error:
        raise ImageError(f"{error} Copy or download it again.") from None
    if not isinstance(content, dict):
        raise ImageError(f"{found[0]}: content is a {type(content).__name__}; a JSON object is needed. Copy or "
                         "download it again.")
    return found[0], content


def _entries(path: Path, content: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The entries of a list, or of the lists of several modalities."""
    value = content.get(key) or []
    entries = [each for part in value.values() for each in part] if isinstance(value, dict) else value
    if not isinstance(entries, list) or not all(isinstance(entry, (dict, str)) for entry in entries):
        raise ImageError(f"{path}: {key} is {value!r:.80}; it must be a list of entries. Fix the file.")
    return [{"image": entry} if isinstance(entry, str) else entry for entry in entries]


def _field(path: Path, entry: Mapping[str, Any], key: str) -> str:
    if not isinstance(entry.get(key), str):
        raise ImageError(f"{path}: entry {dict(entry)} has no {key!r}; it must name a file. Fix the file.")
    return entry[key]


def _inside(path: Path, folder: Path, name: str) -> Path:
    """A file that the JSON names, relative to its folder."""
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ImageError(f"{path}: file {name!r} lies outside {folder}; names must be relative to it. Fix the file.")
    if not file.is_file():
        raise ImageError(f"{path}: file {name!r} is missing in {folder}. Unpack the whole archive.")
    return file


def _sidecar(path: Path, folder: Path, entry: Mapping[str, Any], image: str, kind: str) -> Path | None:
    """File of an image's label, mask or key-points: the one its entry names, or the one at the usual place."""
    if isinstance(entry.get(kind), str):
        return _inside(path, folder, entry[kind])
    usual = re.sub(r"images(T[rs])", rf"{kind if kind.endswith('s') else kind + 's'}\1", image)
    if kind == "keypoints":
        usual = re.sub(r"\.nii(\.gz)?$", ".csv", usual)
    return folder / usual if usual != image and (folder / usual).is_file() else None
