"""Files and folders of results appear whole or not at all."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from regenv.atomic import atomic, check_folder, scratch, whole_folder

KILLED = """
import os, signal, sys
from regenv.atomic import {name}
with {name}(sys.argv[1]) as place:
    ((place / "a.txt") if place.is_dir() else place).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def contents(folder: Path) -> dict[str, str]:
    """Every file under a folder, hidden ones too, with its text."""
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.nii.gz"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic(path) as temporary:
        assert temporary.name == "out.nii.gz" and temporary.parent.parent == tmp_path
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"out.nii.gz": "old"}
    with atomic(path) as temporary:
        temporary.write_text("new")
    assert contents(tmp_path) == {"out.nii.gz": "new"}


def test_a_file_in_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no" / "out.csv"
    told = f"{path}: folder {path.parent} does not exist. Create it first."
    with pytest.raises(FileNotFoundError, match=re.escape(told)), atomic(path):
        raise AssertionError("nothing may be written")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_results_appears_with_all_its_files(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "results"
    with whole_folder(out) as folder:
        (folder / "a.txt").write_text("a")
        assert not out.exists() and not out.parent.exists()
        (folder / "b.txt").write_text("b")
    assert contents(tmp_path) == {"deep/results/a.txt": "a", "deep/results/b.txt": "b"}


def test_files_of_an_existing_folder_are_replaced_and_others_kept(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.txt").write_text("old")
    (tmp_path / "results" / "notes.txt").write_text("mine")
    with whole_folder(tmp_path / "results") as folder:
        (folder / "a.txt").write_text("new")
        assert (tmp_path / "results" / "a.txt").read_text() == "old"
    assert contents(tmp_path) == {"results/a.txt": "new", "results/notes.txt": "mine"}


def test_failure_leaves_no_folder_of_results(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "results") as folder:
        (folder / "a.txt").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["results", "results/deep"])
def test_a_file_where_a_folder_is_needed_is_refused(tmp_path: Path, out: str) -> None:
    (tmp_path / "results").write_text("a file")
    told = f"{tmp_path / 'results'}: it is a file, but the results need a folder. Choose another -o."
    with pytest.raises(NotADirectoryError, match=re.escape(told)):
        check_folder(tmp_path / out)
    with pytest.raises(NotADirectoryError, match=re.escape(told)), whole_folder(tmp_path / out):
        raise AssertionError("nothing may be written")
    assert contents(tmp_path) == {"results": "a file"}


def test_a_folder_that_can_be_made_passes(tmp_path: Path) -> None:
    check_folder(tmp_path)
    check_folder(tmp_path / "not" / "yet")
    assert list(tmp_path.iterdir()) == []


def test_a_file_keeps_its_mode_and_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "report.json", tmp_path / "link.json"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    with atomic(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink() and target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert contents(tmp_path) == {"link.json": "new", "real/report.json": "new"}


def test_devices_pipes_and_streams_are_written_directly(tmp_path: Path) -> None:
    for device in ("/dev/null", "/dev/stdout"):
        with atomic(device) as temporary:
            assert temporary == Path(device)
    os.mkfifo(tmp_path / "pipe")
    with atomic(tmp_path / "pipe") as temporary:
        assert temporary == tmp_path / "pipe"
    with pytest.raises(OSError, match="/dev/full: it cannot be written"), atomic("/dev/full") as temporary:
        assert temporary == Path("/dev/full")   # before anything is written: a file must not take the device's place
        temporary.write_text("x")


@pytest.mark.parametrize(("path", "told"), [("", "has the name ''"), (".", "it is a folder")])
def test_what_is_no_file_is_refused(path: str, told: str) -> None:
    with pytest.raises((ValueError, OSError), match=told), atomic(path):
        raise AssertionError("nothing may be written")


def test_files_of_an_earlier_run_go_and_the_mark_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, out = ("a.txt", "b.txt", "mark.txt"), tmp_path / "results"
    with whole_folder(out, names) as folder:
        for name in names:
            (folder / name).write_text("old")
    (out / "notes.txt").write_text("mine")
    seen, replace = [], os.replace

    def watched(one: Path, other: Path) -> None:
        seen.append((out / "mark.txt").exists())
        replace(one, other)

    monkeypatch.setattr(os, "replace", watched)
    with whole_folder(out, names) as folder:
        (folder / "mark.txt").write_text("new")
        (folder / "a.txt").write_text("new")
    assert contents(out) == {"a.txt": "new", "mark.txt": "new", "notes.txt": "mine"}
    assert seen == [False, False]


def test_two_runs_into_one_new_folder_leave_one_whole_set(tmp_path: Path) -> None:
    out, names = tmp_path / "results", ("a.txt", "b.txt")
    with whole_folder(out, names) as first:
        (first / "a.txt").write_text("first")
        with whole_folder(out, names) as second:
            (second / "b.txt").write_text("second")
        (first / "b.txt").write_text("first")
    assert contents(tmp_path) == {"results/a.txt": "first", "results/b.txt": "first"}


def test_results_go_through_a_link_to_another_file_system(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    with scratch(memory) as target:
        (tmp_path / "out").symlink_to(target)
        check_folder(tmp_path / "out")
        with whole_folder(tmp_path / "out") as folder:
            assert folder.stat().st_dev == memory.stat().st_dev
            (folder / "a.txt").write_text("a")
        assert contents(target) == {"a.txt": "a"}
        assert (tmp_path / "out").is_symlink() and list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_where_nothing_can_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    for out in ("/proc/results", "/dev/null/results", tmp_path / ("long" * 80)):
        with pytest.raises(OSError, match=re.escape(str(Path(out).parent))) as told:
            check_folder(out)
        assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="the name ''"):
        check_folder("")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["atomic", "whole_folder"])
def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    if name == "whole_folder":
        out.mkdir()
    folder = out if out.is_dir() else tmp_path
    done = subprocess.run([sys.executable, "-c", KILLED.format(name=name), str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(folder.glob(".regenv-*"))) == 1 and not out.is_file()
    with scratch(folder) as alive:
        with (atomic(out) if name == "atomic" else whole_folder(out)) as place:
            (place / "a.txt" if place.is_dir() else place).write_text("whole")
        assert list(folder.glob(".regenv-*")) == [alive]
    assert list(contents(tmp_path).values()) == ["whole"]


def test_scratch_of_other_hosts_and_of_running_processes_stays(tmp_path: Path) -> None:
    others = tmp_path / ".regenv-0badcafe-1-1-aaaa"
    others.mkdir()
    with scratch(tmp_path) as mine:
        reused = mine.with_name(re.sub(r"-\d+-(\w+)$", r"-1-\1x", mine.name))      # this process's number, born earlier
        reused.mkdir()
        with scratch(tmp_path):
            assert mine.is_dir() and others.is_dir() and not reused.is_dir()


@pytest.mark.parametrize("error", [ValueError("{}/a.nii: the disk is full."), OSError("{}/a.nii: the disk is full."),
                                   OSError(28, "the disk is full")])
def test_an_error_while_writing_names_the_users_place(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error), match=re.escape(str(tmp_path / "out"))) as told, \
            whole_folder(tmp_path / "out") as folder:
        raise type(error)(*(part.format(folder) if isinstance(part, str) else part for part in error.args))
    assert ".regenv" not in str(told.value) and "disk is full" in str(told.value)
