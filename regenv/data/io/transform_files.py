"""Linear transforms that SimpleITK reads, from files that may be damaged.

A damaged HDF5 or MATLAB file can end the process that reads it, or keep it for ever. So SimpleITK turns such a file
into text in a process of its own, and what is read here is text, which was looked at.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import SimpleITK as sitk

from regenv.data.io.errors import ImageError, reason, shown
from regenv.data.io.formats.streams import first_bytes

_TEXTS = (".tfm", ".txt")
_TEXT_BYTES = 1 << 20           # of a linear transform, far more than it needs
_PROCESSOR_SECONDS, _SECONDS = 5, 120
_TO_TEXT = """
import sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[3]),) * 2)
except ImportError:
    pass
import SimpleITK as sitk
try:
    transform = sitk.ReadTransform(sys.argv[1])
    if transform.IsLinear():
        sitk.WriteTransform(transform, sys.argv[2])
    else:
        print(transform.GetName())
except RuntimeError:
    sys.exit(3)
"""


def linear_transform(path: Path) -> sitk.Transform:
    """The transform in a file. Raises ImageError where it is damaged, or the transform is not linear."""
    with tempfile.TemporaryDirectory() as folder:
        checked = Path(folder) / "transform.tfm"        # its name is one that SimpleITK takes
        if path.suffix.lower() in _TEXTS:
            checked.write_bytes(_text(path))
        else:
            _to_text(path, checked)
        try:
            transform = sitk.ReadTransform(str(checked))
        except RuntimeError as error:
            raise _unreadable(path, reason(error).replace(str(checked), path.name)) from error
    if not transform.IsLinear():
        raise _not_linear(path, transform.GetName())
    return transform


def _text(path: Path) -> bytes:
    content = first_bytes(path, _TEXT_BYTES + 1)
    if len(content) > _TEXT_BYTES:
        raise _unreadable(path, f"it is longer than {_TEXT_BYTES} bytes")
    if not content.isascii() or b"\0" in content:
        raise _unreadable(path, "it is no plain text")
    return content


def _to_text(path: Path, target: Path) -> None:
    """Write the transform of a file of another kind as text."""
    source = target.with_suffix(path.suffix.lower())
    source.symlink_to(path.resolve())
    command = [sys.executable, "-c", _TO_TEXT, str(source), str(target), str(_PROCESSOR_SECONDS)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise _unreadable(path, f"reading takes more than {_SECONDS} s") from None
    if done.returncode == 0 and not target.is_file():
        raise _not_linear(path, shown(done.stdout.decode("latin-1").strip()))
    if done.returncode != 0:
        raise _unreadable(path, "its content is damaged or no transform")


def _unreadable(path: Path, why: str) -> ImageError:
    return ImageError(f"{path}: SimpleITK cannot read it as a transform ({why}). Check that the file is complete.")


def _not_linear(path: Path, name: str) -> ImageError:
    return ImageError(f"{path}: transform is {name}; a linear one (rigid, similarity, affine) is needed. Export the "
                      "linear part.")
