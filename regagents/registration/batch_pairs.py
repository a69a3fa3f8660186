"""Pairs of files that belong to one batch: from a table, or from a folder in the layout of BIDS."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NEEDED = ("fixed", "moving")
COUPLES = ("mask", "labels", "landmarks")
COLUMNS = (*NEEDED, "name", *(f"{side}_{what}" for what in COUPLES for side in NEEDED), "init")
PLACES = ("header", "center")   # that an init may name where it is no file
LONGEST = 200                   # bytes of a name
RESERVED = ("batch.jsonl", "summary.csv", "summary.md", "index.html")   # that lie beside the pairs' folders
UNSAFE = re.compile(r"[^\w.+-]+")
FUNCTIONAL = ("bold", "sbref", "cbv")
PARTS = ("part-phase", "part-real", "part-imag")    # of a complex image, which show no anatomy
FIRST_VOLUME = 0

Couple = tuple[Path, Path]


@dataclass(frozen=True)
class Pair:
    """Two images to be registered, and what belongs to them.

    Attributes:
        name: of the folder with the results.
        fixed, moving: files, or folders of a DICOM series.
        masks, labels, landmarks: of both images, or None.
        init: "header", "center" or the file of a transform; None for what the batch says.
        volume: of an image that has several, from 0, where the batch names none.
    """

    name: str
    fixed: Path
    moving: Path
    masks: Couple | None = None
    labels: Couple | None = None
    landmarks: Couple | None = None
    init: str | None = None
    volume: int | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them, absolute."""
        start = [] if self.init is None or self.init in PLACES else [Path(self.init)]
        beside = [path for couple in (self.masks, self.labels, self.landmarks) for path in couple or ()]
        return tuple(path.absolute() for path in (self.fixed, self.moving, *beside, *start))


@dataclass(frozen=True)
class Pairs:
    """Attributes: pairs; left_out: a sentence for each subject that has nothing to register."""

    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...] = ()


def read_pairs(source: str | Path, fixed: str | Path | None = None) -> Pairs:
    """The pairs of a table (.csv, .tsv) or of a BIDS folder, checked: every file exists, and names can be folders.

    A table has the columns fixed and moving, and may have name, fixed_mask, moving_mask, fixed_labels, moving_labels,
    fixed_landmarks, moving_landmarks and init ("header", "center" or a file); a cell may be empty. Paths are relative
    to the table. A pair without a name is called by the number of its row and its moving image.

    In a BIDS folder the first T1w image by name of each session (of the subject's first session that has one, where it
    has none) is the fixed image of all other images in the session's anat and func folders; masks and phase images are
    left out. With ``fixed`` the first T1w image of each session is the moving image of that one.

    Args: fixed: an image that every subject's T1w image is registered to; of BIDS folders only.
    Raises ValueError: another column, a file that is missing, a name that is there twice or cannot be a folder's, or no
    pair at all. OSError: the table cannot be read.
    """
    source = Path(source)
    if not source.is_dir() and fixed is not None:
        raise ValueError(f"{source}: a table names its fixed images itself; leave out fixed ({fixed}).")
    found = _bids(source, None if fixed is None else Path(fixed)) if source.is_dir() else Pairs(tuple(_table(source)))
    if not found.pairs:
        raise ValueError(f"{source}: it has no pair of images to register. {' '.join(found.left_out)}".strip())
    checked(found.pairs, source)
    return found


def checked(pairs: Sequence[Pair], source: str | Path) -> None:
    """Raise ValueError where a file is missing, or a name cannot be a folder's or is there twice."""
    for pair in pairs:
        _check_name(pair.name, source)
    folded = Counter(pair.name.casefold() for pair in pairs)
    twice = next((pair.name for pair in pairs if folded[pair.name.casefold()] > 1), None)
    if twice is not None:
        raise ValueError(f"{source}: name {twice!r} is there {folded[twice.casefold()]} times (upper and lower case "
                         "are one); every pair needs its own.")
    missing = [path for pair in pairs for path in pair.files if not path.exists()]
    if missing:
        more = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise ValueError(f"{missing[0]}: no such file or folder{more}, though {source} names it. Nothing was begun.")


def _check_name(name: str, source: str | Path) -> None:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = LONGEST + 1
    bad = (not name or not name.isprintable() or any(letter in name for letter in '/\\<>:"|?*') or name[0] in ".-"
           or name[-1] in ". " or name[0] == " " or name.casefold() in RESERVED or size > LONGEST)
    if bad:
        raise ValueError(f"{source}: name is {name!r:.100}; it must do as the name of a folder: at most {LONGEST} "
                         "bytes, no / \\ < > : \" | ? *, no dot or dash in front, and none of "
                         f"{', '.join(RESERVED)}.")


def stem(path: Path) -> str:
    """A file's name without .nii.gz or its suffix."""
    return path.name[:-len(".nii.gz")] if path.name.lower().endswith(".nii.gz") else path.stem


# -------------------------------------------------------------------------------------------------------------- tables

def _table(path: Path) -> Iterator[Pair]:
    """The pairs of a table's rows."""
    if not path.is_file():
        raise ValueError(f"{path}: no such table or BIDS folder. Check the path.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: it is no table of text in UTF-8 ({error}). Save it as CSV.") from None
    head = [name.strip() for name in lines[0]] if lines else []
    _check_columns(path, head)
    rows = [(number, [cell.strip() for cell in cells]) for number, cells in enumerate(lines[1:], 1)]
    rows = [(number, cells) for number, cells in rows if any(cells)]
    digits = len(str(max((number for number, _ in rows), default=0)))
    for number, cells in rows:
        if len(cells) != len(head):
            raise ValueError(f"{path}: row {number} has {len(cells)} cells, but there are {len(head)} columns.")
        filled = {name: cell for name, cell in zip(head, cells, strict=True) if cell}
        yield _row(path, number, digits, filled)


def _check_columns(path: Path, head: Sequence[str]) -> None:
    unknown = [name for name in head if name not in COLUMNS]
    twice = [name for name, count in Counter(head).items() if count > 1]
    lacking = [name for name in NEEDED if name not in head]
    if unknown or twice or lacking:
        told = (f"column {unknown[0]!r:.80} is unknown" if unknown else f"column {twice[0]!r} is there twice" if twice
                else f"column {lacking[0]!r} is missing")
        raise ValueError(f"{path}: {told}; columns are {', '.join(COLUMNS)}, of which fixed and moving are needed.")


def _row(table: Path, number: int, digits: int, filled: Mapping[str, str]) -> Pair:
    """The pair of a row's filled cells."""
    lacking = [name for name in NEEDED if name not in filled]
    for what in COUPLES:
        given = [f"{side}_{what}" in filled for side in NEEDED]
        if any(given) and not all(given):
            lacking.append(f"{NEEDED[given.index(False)]}_{what}")
    if lacking:
        raise ValueError(f"{table}: row {number} has no {lacking[0]}; fill it"
                         f"{', or leave its partner empty, too' if '_' in lacking[0] else ''}.")

    def file(column: str) -> Path:
        return table.parent / filled[column]

    masks, labels, landmarks = ((file(f"fixed_{what}"), file(f"moving_{what}")) if f"fixed_{what}" in filled else None
                                for what in COUPLES)
    init = filled.get("init")
    moving = file("moving")
    name = filled.get("name") or f"{number:0{digits}d}-{UNSAFE.sub('_', stem(moving))}"
    return Pair(name, file("fixed"), moving, masks, labels, landmarks,
                init if init is None or init in PLACES else str(file("init")))


# ---------------------------------------------------------------------------------------------------------------- BIDS

def _bids(folder: Path, template: Path | None) -> Pairs:
    """The pairs of a BIDS folder, see :func:`read_pairs`."""
    subjects = sorted(path for path in folder.glob("sub-*") if path.is_dir())
    if not subjects:
        raise ValueError(f"{folder}: it has no folder sub-*, as a BIDS folder has. Give that, or a table.")
    pairs: list[Pair] = []
    left_out: list[str] = []
    for subject in subjects:
        found = list(_of_subject(subject, template))
        pairs.extend(found)
        if not found:
            has = any(_first_t1(session) for session in _sessions(subject))
            left_out.append(f"{subject.name}: {'no image beside its T1w image' if has else 'no T1w image'}.")
    return Pairs(tuple(pairs), tuple(left_out))


def _of_subject(subject: Path, template: Path | None) -> Iterator[Pair]:
    sessions = _sessions(subject)
    firsts = [_first_t1(session) for session in sessions]
    if template is not None:
        yield from (Pair(stem(first), template, first, volume=FIRST_VOLUME) for first in firsts if first is not None)
        return
    fallback = next((first for first in firsts if first is not None), None)
    for session, first in zip(sessions, firsts, strict=True):
        fixed = first or fallback
        if fixed is not None:
            yield from (Pair(stem(moving), fixed, moving, volume=FIRST_VOLUME)
                        for moving in [*_anatomical(session), *_functional(session)] if moving != fixed)


def _sessions(subject: Path) -> list[Path]:
    """The folders that hold a subject's anat and func."""
    return [subject, *sorted(path for path in subject.glob("ses-*") if path.is_dir())]


def _first_t1(session: Path) -> Path | None:
    return next((path for path in _anatomical(session) if _suffix(path) == "T1w"), None)


def _anatomical(session: Path) -> list[Path]:
    return [path for path in _images(session / "anat") if not _suffix(path).lower().endswith("mask")]


def _functional(session: Path) -> list[Path]:
    return [path for path in _images(session / "func") if _suffix(path) in FUNCTIONAL]


def _images(folder: Path) -> list[Path]:
    """A folder's NIfTI images by name."""
    return sorted(path for path in folder.glob("sub-*.nii*") if path.name.endswith((".nii", ".nii.gz"))
                  and not set(stem(path).split("_")) & set(PARTS))


def _suffix(path: Path) -> str:
    """BIDS's suffix, such as T1w."""
    return stem(path).rpartition("_")[2]
