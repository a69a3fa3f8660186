"""The commands apply, invert and info, as they are typed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regagents.cli import apply, info, invert
from regagents.cli.common import Parser
from regenv import shell
from regenv.data.io.transforms import write_transform
from regenv.data.io.writing import write_image
from tests.regagents.toys import blobs, grids, rigid


def parsed(*typed: object) -> argparse.Namespace:
    parser = Parser(prog="regagents")
    commands = parser.add_subparsers(required=True)
    for module in (apply, invert, info):
        module.add(commands)
    return parser.parse_args(list(map(str, typed)))


def typed(*words: object) -> int:
    arguments = parsed(*words)
    return shell.run("regagents", lambda: arguments.command(arguments))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fixed, moving = grids(3)
    write_image(tmp_path / "fixed.nii.gz", blobs(fixed), fixed)
    write_image(tmp_path / "moving.nii.gz", blobs(moving), moving)
    write_image(tmp_path / "labels.nii.gz", (blobs(moving) > 0.4).astype(np.int32) * 312_782_604, moving)
    write_transform(tmp_path / "a.tfm", rigid([3, -2, 4, 5, -6, 7], np.zeros(3)))
    write_transform(tmp_path / "b.tfm", rigid([-8, 1, 0, 0, 20, 0], np.zeros(3)))
    (tmp_path / "points.csv").write_text("x,y,z\n1,2,3\n-10,5,20\n")
    return tmp_path


def test_transforms_are_taken_in_the_order_of_the_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (sitk.ReadTransform(str(folder / name)) for name in ("a.tfm", "b.tfm"))
    assert typed("apply", "-t", folder / "a.tfm", "-i", folder / "b.tfm", "-t", folder / "b.tfm", folder / "b.tfm",
                 "--image", folder / "moving.nii.gz", "--like", folder / "fixed.nii.gz", "-o", folder / "o.nii.gz") == 0
    assert "go through" in (told := capsys.readouterr().out) and told.index("a.tfm") < told.index("the inverse of")
    images = {name: sitk.ReadImage(str(folder / f"{name}.nii.gz")) for name in ("moving", "fixed", "o")}
    wanted = sitk.Resample(images["moving"], images["fixed"], sitk.CompositeTransform([b, a]), sitk.sitkLinear,
                           float(sitk.GetArrayViewFromImage(images["moving"]).min()))
    assert np.abs(sitk.GetArrayFromImage(wanted) - sitk.GetArrayFromImage(images["o"])).max() < 1e-5
    assert parsed("apply", "-t", "a", "-i", "b", "-t", "c", "d", "--image", "m", "-o", "o").steps == [
        ("a", False), ("b", True), ("c", False), ("d", False)]


def test_labels_and_points_are_carried(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("apply", "-t", folder / "a.tfm", "--labels", folder / "labels.nii.gz", "--like",
                 folder / "fixed.nii.gz", "-o", folder / "l.nii.gz") == 0
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "l.nii.gz")))
    assert found.dtype == np.int32 and set(np.unique(found)) == {0, 312_782_604}
    for given, out, options in (("points", "there", ()), ("there", "back", ("--points-of", "moving"))):
        assert typed("apply", "-t", folder / "a.tfm", "-i", folder / "b.tfm", "--points", folder / f"{given}.csv", "-o",
                     folder / f"{out}.csv", *options) == 0
    assert "2 points of the moving image, carried to the fixed one" in capsys.readouterr().out
    assert np.allclose(np.loadtxt(folder / "back.csv", delimiter=",", skiprows=1), [[1, 2, 3], [-10, 5, 20]])
    there = sitk.ReadTransform(str(folder / "b.tfm")).GetInverse().TransformPoint(
        sitk.ReadTransform(str(folder / "a.tfm")).TransformPoint((1.0, 2.0, 3.0)))
    assert np.allclose(np.loadtxt(folder / "there.csv", delimiter=",", skiprows=1)[0], there)


def test_an_image_that_misses_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_transform(folder / "far.tfm", rigid([900, 0, 0, 0, 0, 0], np.zeros(3)))
    assert typed("apply", "-t", folder / "far.tfm", "--image", folder / "moving.nii.gz", "--like",
                 folder / "fixed.nii.gz", "-o", folder / "o.nii.gz") == 0
    assert "warning: nothing of" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "told"), [
    (("--image", "moving.nii.gz", "--like", "fixed.nii.gz", "-o", "o.nii.gz"), "no transform is given"),
    (("-t", "a.tfm", "--image", "moving.nii.gz", "-o", "o.nii.gz"), "--like is missing"),
    (("-t", "a.tfm", "--labels", "labels.nii.gz", "--like", "fixed.nii.gz", "--fill", "3", "-o", "o.nii.gz"), "--fill"),
    (("-t", "a.tfm", "--image", "m.nii.gz", "--points-of", "moving", "--like", "f", "-o", "o.nii.gz"), "--points-of"),
    (("-t", "a.tfm", "--image", "moving.nii.gz", "--like", "fixed.nii.gz", "-o", "o.png"), "format is '.png'"),
    (("-t", "a.tfm", "--points", "points.csv", "-o", "no/o.csv"), "folder no does not exist"),
    (("-t", "c.tfm", "--points", "points.csv", "-o", "o.csv"), "c.tfm: no such file")])
def test_bad_arguments_are_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                                    words: tuple[str, ...], told: str) -> None:
    monkeypatch.chdir(folder)
    before = set(folder.iterdir())
    assert typed("apply", *words) == 2
    line, = capsys.readouterr().err.splitlines()
    assert told in line and set(folder.iterdir()) == before


def test_an_inverse_is_written_and_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("invert", folder / "a.tfm", "-o", folder / "back.tfm") == 0
    assert "round trip: median" in capsys.readouterr().out
    for name in ("back.tfm", "moving.nii.gz"):
        assert typed("info", folder / name) == 0
        text = capsys.readouterr().out
        assert typed("info", folder / name, "--json") == 0
        assert name in text and json.loads(capsys.readouterr().out)["file"] == str(folder / name)
    assert typed("info", folder / "none.h5") == 2
