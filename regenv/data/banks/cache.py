"""What is kept in the user's cache folder: checked whenever it is used, and made by one process at a time."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from regenv.atomic import atomic, scratch
from regenv.stored import StoredError, digest, read_tensors

_LOG = logging.getLogger(__name__)
_mine = threading.local()
_seen: dict[Path, tuple[object, str]] = {}      # files hashed by this process: their state then, and their SHA-256


@contextmanager
def alone(folder: Path, wait: bool = True) -> Iterator[None]:
    """The only process and thread to write into a folder, which is made where it is missing.

    The lock ends with the process and with those that inherit :func:`locks`.

    Raises BlockingIOError: another process has the lock, and ``wait`` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    locked = _locked()
    name = os.path.realpath(folder)
    if name in locked:      # in a call within a call
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder, wait)
        locked[name] = handle
        yield
    finally:
        locked.pop(name, None)
        os.close(handle)


def locks() -> tuple[int, ...]:
    """File descriptors of this thread's locks."""
    return tuple(_locked().values())


def _locked() -> dict[str, int]:
    """Folders that this thread has locked, and their descriptors."""
    locked: dict[str, int] = _mine.__dict__.setdefault("locked", {})
    return locked


def _lock(handle: int, folder: Path, wait: bool) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise
        _LOG.warning("%s: another process is writing here; waiting until it has finished.", folder)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:     # a file system without locks
        pass


def tidy(*folders: Path) -> None:
    """Remove what killed processes left in folders, unless another process is writing there."""
    for folder in filter(Path.is_dir, folders):
        with suppress(OSError), alone(folder, wait=False), scratch(folder):
            pass


def is_sound(path: Path, sha256: str) -> bool:
    """Whether a file is there and has this SHA-256; hashed once, and again when its size or time has changed."""
    try:
        found = path.stat()
        state = (found.st_ino, found.st_size, found.st_mtime_ns)
        if _seen.get(path, (None, ""))[0] != state:
            with path.open("rb") as file:
                _seen[path] = state, hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return False
    return _seen[path][1] == sha256


def kept(path: Path, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors in a file of the cache; made and kept where the file is missing or damaged."""
    if (found := _read(path)) is not None:
        return found
    with alone(path.parent):
        if (found := _read(path)) is None:      # another process may have made it meanwhile
            found = dict(make())
            keep(path, found)
    return found


def keep(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, with their digest, for :func:`kept` to find."""
    with alone(path.parent), atomic(path) as temporary:
        save_file(dict(tensors), temporary, {"sha256": digest(tensors)})


def _read(path: Path) -> dict[str, Tensor] | None:
    """The tensors in a file that is there and undamaged."""
    if not path.is_file():
        return None
    try:
        tensors, metadata = read_tensors(path)
    except StoredError as error:
        _LOG.warning("%s It is made again.", error)
        return None
    if metadata.get("sha256") != digest(tensors):
        _LOG.warning("%s: its digest is missing or wrong; the file is made again.", path)
        return None
    return tensors
