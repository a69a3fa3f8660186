"""Files and folders of results appear whole or not at all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from regenv.atomic import atomic, check_folder, whole_folder


def contents(folder: Path) -> dict[str, str]:
    """Every file under a folder, hidden ones too, with its text."""
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.nii.gz"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic(path) as temporary:
        assert temporary.name.endswith(".nii.gz") and temporary.parent == tmp_path
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
