"""Batches: which pairs a table or a BIDS folder means, what stays done, and what a summary says."""

from __future__ import annotations

import csv
import json
import pickle
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from regagents.registration import batch as batches
from regagents.registration.batch import batch
from regagents.registration.batch_page import Line, markdown, page
from regagents.registration.batch_pairs import Pair, read_pairs
from regenv.data.io.images import ImageError
from regenv.data.io.writing import write_image
from regenv.grid import Grid
from tests.regagents.registration.browser import Browser, chromium
from tests.regagents.toys import image_pair


def files(folder: Path, *names: str) -> None:
    """Files that need only be there."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def table(folder: Path, text: str) -> Path:
    (folder / "table.csv").write_text(text)
    return folder / "table.csv"


def rows_of(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Registrations that are noted by the moving file and end at once: "bad" ones fail, "far" ones are not aligned."""
    noted: list[str] = []

    def register(fixed: Any, moving: Any, *given: Any, **more: Any) -> Any:
        noted.append(moving.name)
        if "bad" in moving.name:
            raise ImageError(f"{moving}: voxel (0, 0) is nan.\nReplace it.")
        state = "failed" if "far" in moving.name else "aligned"
        metrics = {"verdict": {"state": state, "probability": 0.9, "reasons": [] if state == "aligned" else ["far"]},
                   "tre_mm": {"before": 8.0, "after": 1.5}, "dice": {"before": {"1": 0.5, "2": None},
                                                                     "after": {"1": 0.75, "2": 0.25}}}

        def save(out: Path) -> None:
            out.mkdir(exist_ok=True)
            (out / "metrics.json").write_text(json.dumps(metrics))

        return SimpleNamespace(metrics=metrics, trace=[{"score": 0.1}, {"score": 0.3}], save=save)

    monkeypatch.setattr(batches, "register", register)
    monkeypatch.setattr(batches, "_image", lambda path, spacing, volume: path)
    return noted


# ------------------------------------------------------------------------------------------------------------- tables

def test_a_tables_paths_are_relative_to_it_and_cells_may_be_empty(tmp_path: Path) -> None:
    files(tmp_path, "a/t1.nii", "a/t2.nii.gz", "m1.nii", "m2.nii", "p1.csv", "p2.csv", "start.tfm")
    source = table(tmp_path, "moving,fixed,name,fixed_mask,moving_mask,fixed_landmarks,moving_landmarks,init\n"
                             "a/t2.nii.gz,a/t1.nii,one,m1.nii,m2.nii,,,header\n"
                             ",,,,,,,\n"
                             f"a/t2.nii.gz,{tmp_path}/a/t1.nii,,,,p1.csv,p2.csv,start.tfm\n")
    assert read_pairs(source).pairs == (
        Pair("one", tmp_path / "a/t1.nii", tmp_path / "a/t2.nii.gz", (tmp_path / "m1.nii", tmp_path / "m2.nii"),
             init="header"),
        Pair("3-t2", tmp_path / "a/t1.nii", tmp_path / "a/t2.nii.gz",
             landmarks=(tmp_path / "p1.csv", tmp_path / "p2.csv"), init=str(tmp_path / "start.tfm")))


@pytest.mark.parametrize(("text", "told"), [
    ("fixed,moving,mask\na,b,c\n", "column 'mask' is unknown.*fixed_mask"),
    ("fixed,name\na,b\n", "column 'moving' is missing"),
    ("fixed,moving,fixed\na,b,a\n", "column 'fixed' is there twice"),
    ("fixed,moving\na,b\na,b,c\n", "row 2 has 3 cells, but there are 2 columns"),
    ("fixed,moving\na,\n", "row 1 has no moving"),
    ("fixed,moving,fixed_mask,moving_mask\na,b,,c\n", "row 1 has no fixed_mask"),
    ("fixed,moving\na,b\na,nowhere\na,lost\n", r"nowhere: no such file or folder \(and 1 others\)"),
    ("fixed,moving,init\na,b,centre\n", "centre: no such file"),
    ("fixed,moving,name\na,b,one\na,c,ONE\n", "name 'one' is there 2 times"),
    ("fixed,moving,name\na,b,../one\n", r"name is '\.\./one'"),
    ("fixed,moving,name\na,b,one/two\n", "name is 'one/two'"),
    ("fixed,moving,name\na,b,Summary.csv\n", r"name is 'Summary\.csv'"),
    ("fixed,moving\n", "it has no pair"),
    ("", "column 'fixed' is missing"),
    ('fixed,moving\n"a,b\n', "it is no table"),
])
def test_a_bad_table_is_one_error_and_nothing_begins(text: str, told: str, tmp_path: Path, calls: list[str]) -> None:
    files(tmp_path, "a", "b", "c")
    with pytest.raises(ValueError, match=told):
        batch(table(tmp_path, text), tmp_path / "out")
    assert calls == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("given", "told"), [
    ({"transform": "spline"}, "transform is 'spline'"), ({"fill": float("nan")}, "fill is nan"),
    ({"agent": "nobody"}, "nobody"), ({"deform": "adam:levels=x"}, "adam:levels=x"), ({"time": -1}, "time is -1"),
    ({"initial": "no.tfm"}, r"no\.tfm"), ({"engine": "threads"}, "engine is 'threads'"),
    ({"workers": 0}, "workers is 0"), ({"fixed": "template.nii"}, r"template\.nii")])
def test_bad_options_are_one_error_and_nothing_begins(given: dict[str, Any], told: str, tmp_path: Path,
                                                      calls: list[str]) -> None:
    files(tmp_path, "a", "b")
    with pytest.raises(ValueError, match=told):
        batch(table(tmp_path, "fixed,moving\na,b\n"), tmp_path / "out", **given)
    assert calls == [] and not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------------------- BIDS

@pytest.fixture
def bids(tmp_path: Path) -> Path:
    folder = tmp_path / "bids"
    files(folder, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz", "sub-01/anat/sub-01_T1w.json",
          "sub-01/anat/sub-01_desc-brain_mask.nii.gz", "sub-01/func/sub-01_task-rest_bold.nii.gz",
          "sub-01/func/sub-01_task-rest_part-phase_bold.nii.gz", "sub-01/func/sub-01_task-rest_events.tsv",
          "sub-02/ses-a/anat/sub-02_ses-a_run-1_T1w.nii", "sub-02/ses-a/anat/sub-02_ses-a_run-2_T1w.nii",
          "sub-02/ses-b/anat/sub-02_ses-b_FLAIR.nii", "sub-03/anat/sub-03_T2w.nii.gz",
          "sub-04/anat/sub-04_T1w.nii", "derivatives/sub-01/anat/sub-01_T2w.nii.gz", "participants.tsv")
    return folder


def test_each_sessions_images_go_to_its_first_t1(bids: Path) -> None:
    found = read_pairs(bids)
    assert {pair.name: pair.fixed.name for pair in found.pairs} == {
        "sub-01_T2w": "sub-01_T1w.nii.gz", "sub-01_task-rest_bold": "sub-01_T1w.nii.gz",
        "sub-02_ses-a_run-2_T1w": "sub-02_ses-a_run-1_T1w.nii", "sub-02_ses-b_FLAIR": "sub-02_ses-a_run-1_T1w.nii"}
    assert found.left_out == ("sub-03: no T1w image.", "sub-04: no image beside its T1w image.")


def test_with_a_template_the_t1s_are_what_moves(bids: Path) -> None:
    files(bids.parent, "template.nii")
    found = read_pairs(bids, bids.parent / "template.nii")
    assert [pair.moving.name for pair in found.pairs] == ["sub-01_T1w.nii.gz", "sub-02_ses-a_run-1_T1w.nii",
                                                          "sub-04_T1w.nii"]
    assert {pair.fixed for pair in found.pairs} == {bids.parent / "template.nii"}
    assert found.left_out == ("sub-03: no T1w image.",)


def test_another_folder_is_no_bids_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder sub-\*"):
        read_pairs(tmp_path)


@pytest.mark.parametrize(("volume", "wanted"), [(0, 0), (2, 2), (None, None), (9, None)])
def test_a_volume_is_taken_from_images_that_have_several(volume: int | None, wanted: int | None,
                                                         tmp_path: Path) -> None:
    """And a single one is read as it is, whatever volume others are read at."""
    values = np.random.default_rng(0).random((3, 8, 8, 8)).astype(np.float32)
    series = sitk.JoinSeries([sitk.GetImageFromArray(each) for each in values])
    sitk.WriteImage(series, str(tmp_path / "bold.nii.gz"))
    write_image(tmp_path / "t1.nii.gz", values[0], Grid.centered((8, 8, 8), 1.0))
    assert np.array_equal(batches._image(tmp_path / "t1.nii.gz", None, volume).array, values[0])
    if wanted is None:
        with pytest.raises(ImageError, match=r"bold.nii.gz.*3 times"):
            batches._image(tmp_path / "bold.nii.gz", None, volume)
    else:
        assert np.array_equal(batches._image(tmp_path / "bold.nii.gz", None, volume).array, values[wanted])


# -------------------------------------------------------------------------------------------------------- what is done

@pytest.fixture
def four(tmp_path: Path) -> Path:
    files(tmp_path, "f", "good", "bad", "far", "last")
    return table(tmp_path, "fixed,moving,name\nf,good,good\nf,bad,bad\nf,far,far\nf,last,last\n")


def test_a_pair_that_fails_does_not_stop_the_others(four: Path, tmp_path: Path, calls: list[str]) -> None:
    shares: list[tuple[str, float]] = []
    found = batch(four, tmp_path / "out", progress=lambda name, share: shares.append((name, share)))
    assert calls == ["good", "bad", "far", "last"]
    assert [line.state for line in found.lines] == ["aligned", "error", "failed", "aligned"]
    rows = rows_of(tmp_path / "out")
    assert rows["bad"]["error"] == f"{tmp_path}/bad: voxel (0, 0) is nan. Replace it." and rows["bad"]["score"] == ""
    assert (rows["far"]["reasons"], rows["good"]["score"], rows["good"]["tre_mm_after"]) == ("far", "0.3", "1.5")
    assert (rows["good"]["dice_before"], rows["good"]["dice_after"]) == ("0.5", "0.5")
    assert shares == [("", 0.0), ("good", 0.25), ("bad", 0.5), ("far", 0.75), ("last", 1.0)]


def test_what_is_done_stays_done(four: Path, tmp_path: Path, calls: list[str]) -> None:
    out = tmp_path / "out"
    batch(four, out)
    before = rows_of(out)
    calls.clear()
    batch(four, out)
    assert calls == ["bad"]     # failures are tried again
    after = rows_of(out)
    assert {name: row for name, row in after.items() if name != "bad"} == {
        name: row for name, row in before.items() if name != "bad"}
    calls.clear()
    (tmp_path / "far").write_text("another image")
    (out / "last" / "metrics.json").unlink()
    batch(four, out)
    assert calls == ["bad", "far", "last"]
    with pytest.raises(ValueError, match=r"batch\.jsonl: transform is 'rigid' there and 'affine' here"):
        batch(four, out, transform="affine")


def test_an_interrupt_keeps_what_is_done(four: Path, tmp_path: Path, calls: list[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    register = batches.register

    def interrupted(fixed: Any, moving: Any, *given: Any, **more: Any) -> Any:
        if moving.name == "far":
            raise KeyboardInterrupt
        return register(fixed, moving, *given, **more)

    monkeypatch.setattr(batches, "register", interrupted)
    with pytest.raises(KeyboardInterrupt):
        batch(four, tmp_path / "out")
    assert [row["verdict"] for row in rows_of(tmp_path / "out").values()] == ["aligned", "error", "not run", "not run"]
    monkeypatch.setattr(batches, "register", register)
    calls.clear()
    batch(four, tmp_path / "out")
    assert calls == ["bad", "far", "last"]


def test_an_error_that_nobody_foresaw_is_a_line_too(four: Path, tmp_path: Path, calls: list[str],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **more: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(batches, "register", broken)
    found = batch(four, tmp_path / "out")
    assert {line.why for line in found.lines} == {"unexpected ZeroDivisionError: division by zero"}


def test_a_pair_can_be_sent_to_another_process() -> None:
    pair, options = Pair("one", Path("f"), Path("m"), init="header"), batches.Options(time=2)
    assert pickle.loads(pickle.dumps((batches.registered, pair, options))) == (batches.registered, pair, options)


def test_a_pair_is_registered_as_register_does(tmp_path: Path) -> None:
    """The files of a single registration, and its own numbers in the summary."""
    fixed, moving, _ = image_pair(tmp_path, 2)
    (tmp_path / "cut.nii.gz").write_bytes(moving.read_bytes()[:200])
    source = table(tmp_path, f"fixed,moving,name\n{fixed.name},{moving.name},one\n{fixed.name},cut.nii.gz,two\n")
    found = batch(source, tmp_path / "out", agent="none", refine=False, initial="center")
    assert "cut.nii.gz" in found.of("error")[0].why
    metrics = json.loads((tmp_path / "out" / "one" / "metrics.json").read_text())
    row = rows_of(tmp_path / "out")["one"]
    assert (row["verdict"], float(row["probability"])) == (metrics["verdict"]["state"],
                                                           metrics["verdict"]["probability"])
    pose = sitk.ReadTransform(str(tmp_path / "out" / "one" / "transform.tfm"))
    assert np.allclose(pose.TransformPoint((0.0, 0.0)), np.array(metrics["pull_back"])[:2, 2])
    assert (tmp_path / "out" / "one" / "report.html").is_file() and not (tmp_path / "out" / "two").exists()


# ------------------------------------------------------------------------------------------------------- the summary

def line(name: str, state: str, **found: Any) -> Line:
    values = {"error": "file | broken <b>"} if state == "error" else {
        "verdict": state, "probability": 0.5, "score": 0.25, "reasons": []}
    return Line(Pair(name, Path("f"), Path("m")), {"seconds": 2.0, **values, **found})


LINES = [line("a & b'<i>", "aligned", probability=0.97), line("x", "error"), line("10", "failed", probability=0.01),
         Line(Pair("late", Path("f"), Path("m")), {}), line("9", "doubtful", reasons=["${body} `_` |"])]


def test_the_pages_text_is_what_was_given_and_its_links_lead_to_the_reports() -> None:
    texts: list[str] = []
    tags: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_data = lambda data: texts.append(data.strip())  # type: ignore[method-assign]
    parser.handle_starttag = lambda tag, attrs: tags.append((tag, dict(attrs)))  # type: ignore[method-assign]
    parser.feed(page(LINES, ["sub-<7>: no T1w image."]))
    assert {"a & b'<i>", "file | broken <b>", "${body} `_` |", "5 pairs: 1 error, 1 failed, 1 doubtful, 1 aligned, "
            "1 not run", "Left out: sub-<7>: no T1w image."} <= set(texts)
    assert [attrs["href"] for tag, attrs in tags if tag == "a"] == [
        "a%20%26%20b%27%3Ci%3E/report.html", "10/report.html", "9/report.html"]
    assert not {"i", "b", "img", "link"} & {tag for tag, _ in tags}


def test_markdown_has_a_row_a_pair_whatever_it_holds() -> None:
    rows = [row for row in markdown(LINES).splitlines() if row.startswith("|")]
    assert len(rows) == 2 + len(LINES)
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1
    assert r"file \| broken \<b\>" in rows[3]


@pytest.mark.skipif(chromium() is None, reason="no Chromium here")
def test_a_click_on_verdict_puts_first_what_needs_a_look(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(page(LINES), encoding="utf-8")
    names = "[...document.querySelectorAll('tbody tr')].map(row => row.cells[0].textContent)"
    with Browser(str(chromium()), tmp_path / "profile") as browser:
        browser.call("Page.navigate", url=(tmp_path / "index.html").as_uri())
        browser.wait("document.readyState === 'complete' && document.querySelector('tbody') !== null")
        orders = [browser.evaluate(f"document.querySelectorAll('th button')[{column}].click(), {names}")
                  for column in (1, 1, 0, 2)]
    assert orders[0] == ["x", "10", "9", "a & b'<i>", "late"]
    assert orders[1] == orders[0][::-1]
    assert orders[2] == ["9", "10", "a & b'<i>", "late", "x"]
    assert orders[3][:3] == ["10", "9", "a & b'<i>"]    # by probability; those that have none come last
