"""Files and folders that appear whole or not at all.

What is written goes into a hidden scratch folder on the same file system, reaches the disk, and is then renamed. A
scratch folder carries its process in its name; the next run into the same place removes those of killed processes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

_SCRATCH = re.compile(r"\.regenv-(?P<host>\w+)-(?P<pid>\d{1,9})-(?P<born>\d+)-\w+")
_TRIAL_BYTES = 1 << 16      # that must fit where results are to be written
UNKNOWN, ENDED = 0, -1      # instead of the time at which a process began
_STREAMS = ("/proc/", "/dev/fd/", "/dev/stdout", "/dev/stderr")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A path of the same name in a scratch folder; moved to ``path`` at the end, removed after a failure.

    A file that is there keeps its mode and owner; a link stays, and its target is replaced. A device, a pipe or a
    standard stream cannot be replaced: it is yielded itself.

    Raises:
        ValueError: the path is empty. FileNotFoundError: its folder does not exist. IsADirectoryError: it is a folder.
        PermissionError: it is read-only. OSError: the disk does not take it.
    """
    if not str(path):
        raise ValueError("the file to be written has the name ''; name one.")
    path = Path(path)
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path}: it is a folder; give the name of a file.")
    if (path.exists() and not path.is_file()) or os.path.abspath(path).startswith(_STREAMS):
        with _named(path):
            yield path
        return
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: folder {path.parent} does not exist. Create it first.")
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(f"{path}: it is read-only. Change its mode, or choose another name.")
    with _named(path), scratch(target.parent) as folder:
        temporary = folder / target.name
        yield temporary
        if target.exists():
            _take_over(target.stat(), temporary)
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)


@contextmanager
def whole_folder(out: str | Path, names: Sequence[str] = ()) -> Iterator[Path]:
    """A scratch folder; its files are moved to folder ``out`` at the end, or removed after a failure.

    Args:
        out: made with its parents where it does not exist.
        names: of all files that such a run may write. Those that it does not write are removed from ``out``, so that
            no file of an earlier run stands beside it; other files stay. The last name marks a whole set: it is
            missing while one set replaces another.
    Raises: as :func:`check_folder`.
    """
    nearest, place = _place(out)
    with _named(Path(out)), scratch(nearest) as folder:
        with _told_of(folder, Path(out)):
            yield folder
        for path in (*folder.iterdir(), folder):
            _sync(path)
        if not place.is_dir():
            place.parent.mkdir(parents=True, exist_ok=True)
            with _unless(place.is_dir):     # another run may make it at this moment
                os.replace(folder, place)
        if folder.is_dir():
            _replace_files(folder, place, names)
        _sync(place.parent)


def check_folder(out: str | Path) -> None:
    """Write on trial where :func:`whole_folder` will write, and leave nothing.

    Raises:
        ValueError: the name is empty. NotADirectoryError: it is a file, or lies in one. OSError: it cannot be written,
            or the disk is full.
    """
    nearest, place = _place(out)
    with _named(Path(out)), scratch(nearest) as folder:
        trial = folder / place.relative_to(nearest)
        trial.mkdir(parents=True, exist_ok=True)
        (trial / "trial").write_bytes(bytes(_TRIAL_BYTES))
        _sync(trial / "trial")


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A hidden folder inside a folder, removed at the end; those of killed processes are removed first."""
    _sweep(folder)
    made = folder / f".regenv-{_host()}-{os.getpid()}-{_born(os.getpid())}-{uuid.uuid4().hex[:12]}"
    made.mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------ where and how

def _place(out: str | Path) -> tuple[Path, Path]:
    """The nearest folder that exists at or above ``out``, and ``out``; links are followed."""
    if not str(out):
        raise ValueError("the folder for the results has the name ''; name one with -o.")
    place = Path(os.path.realpath(out))
    for path in (place, *place.parents):
        if path.is_dir():
            return path, place
        if path.exists() or path.is_symlink():
            break
    raise NotADirectoryError(f"{path}: it is a file, but the results need a folder. Choose another -o.")


def _replace_files(folder: Path, out: Path, names: Sequence[str]) -> None:
    """Move a folder's files into ``out``, one run at a time, and remove those of ``names`` that it lacks."""
    handle = os.open(out, os.O_RDONLY)
    try:
        with suppress(OSError):     # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        files, mark = sorted(path.name for path in folder.iterdir()), names[-1:]
        for name in (*mark, *names[:-1]):
            if name in mark or name not in files:
                (out / name).unlink(missing_ok=True)
        for name in sorted(files, key=mark.__contains__):
            os.replace(folder / name, out / name)
        os.fsync(handle)
    finally:
        os.close(handle)


def _take_over(old: os.stat_result, path: Path) -> None:
    """Give a file the owner and the mode of the one that it replaces."""
    with suppress(PermissionError):
        os.chown(path, old.st_uid, old.st_gid)
    path.chmod(stat.S_IMODE(old.st_mode))


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():       # some file systems sync no folders
            raise
    finally:
        os.close(handle)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns an error of the system about a scratch file into one that names the path that the user gave."""
    try:
        yield
    except OSError as error:
        about = str(error.filename or path)
        if error.strerror is None or not (_SCRATCH.search(about) or about == str(path)):
            raise
        told = type(error)(f"{path}: it cannot be written ({error.strerror}). Check the permissions and the free "
                           "space, or choose another place.")
        told.errno = error.errno
        raise told from error


@contextmanager
def _told_of(folder: Path, out: Path) -> Iterator[None]:
    """Lets an error about a file in a scratch folder name the place where the file was to appear."""
    try:
        yield
    except (OSError, ValueError) as error:
        told = str(error)
        if str(folder) not in told or getattr(error, "strerror", None) is not None:
            raise
        raise type(error)(told.replace(str(folder), str(out))) from error


@contextmanager
def _unless(excused: Callable[[], bool]) -> Iterator[None]:
    """Passes over an error of the system where it is excused."""
    try:
        yield
    except OSError:
        if not excused():
            raise


# -------------------------------------------------------------------------------------------------- killed processes

def _sweep(folder: Path) -> None:
    """Remove the scratch folders that killed processes of this host left in a folder."""
    with suppress(OSError):
        for path in folder.iterdir():
            owner = _SCRATCH.fullmatch(path.name)
            if owner and owner["host"] == _host() and not _is_running(int(owner["pid"]), int(owner["born"])):
                shutil.rmtree(path, ignore_errors=True)


@lru_cache(maxsize=1)
def _host() -> str:
    """A word for this machine and its list of processes; another container has another one."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        processes = ""
    return hashlib.sha256(f"{platform.node()} {processes}".encode()).hexdigest()[:8]


def _is_running(pid: int, born: int) -> bool:
    """Whether the process with this number that began then still runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:     # another user's
        pass
    return _born(pid) in (born, UNKNOWN)


def _born(pid: int) -> int:
    """When a process began, in ticks since the system did."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return UNKNOWN
    return ENDED if state == "Z" else int(fields[18])
