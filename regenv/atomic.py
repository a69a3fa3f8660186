"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path`` with its suffix; renamed to ``path`` at the end, removed after a failure.

    Raises FileNotFoundError where the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: folder {path.parent} does not exist. Create it first.")
    suffix = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix
    temporary = path.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(out: str | Path) -> Iterator[Path]:
    """A temporary folder; its files are moved to folder ``out`` at the end, or removed after a failure.

    Raises NotADirectoryError where ``out`` is a file.
    """
    out = Path(out)
    check_folder(out)
    nearest = next(folder for folder in out.absolute().parents if folder.is_dir())
    folder = nearest / f".{out.name}.{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield folder
        if out.is_dir():
            for path in sorted(folder.iterdir()):
                os.replace(path, out / path.name)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_folder(out: str | Path) -> None:
    """Raise NotADirectoryError unless folder ``out`` exists or can be created."""
    for path in (Path(out), *Path(out).absolute().parents):
        if path.exists() or path.is_symlink():
            if not path.is_dir():
                raise NotADirectoryError(f"{path}: it is a file, but the results need a folder. Choose another -o.")
            return
