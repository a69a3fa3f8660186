"""The command: what it writes, and that bad input ends with one line, exit status 2 and nothing written."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from regagents.cli import main
from regagents.registration import register as registration
from regagents.registration import result as results
from regagents.registration.pipeline import AGENTS
from regagents.training import presets
from regenv.data.io.writing import write_image
from regenv.grid import Grid
from tests.regagents.toys import checkpoint, image_pair, toy_config

NIFTI_SPACING = 80  # byte offset of pixdim[1]
Bad = Callable[[Path], tuple[list[str], tuple[str, ...]]]


def volume(path: Path, array: np.ndarray | None = None) -> Path:
    values = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32) if array is None else array
    write_image(path, values, Grid.centered(values.shape, 4.0))
    return path


def nan_voxel(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    array = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    array[1, 2, 3] = np.nan
    path = volume(folder / "nan.nii.gz", array)
    return [str(path), str(folder / "moving3d.nii.gz")], ("nan.nii.gz", "nan", "1, 2, 3")


def one_voxel_axis(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    array = np.random.default_rng(0).random((1, 8, 8)).astype(np.float32)
    return [str(volume(folder / "slice.nii.gz", array)), str(folder / "moving3d.nii.gz")], ("slice.nii.gz", "8", "1")


def three_voxel_axis(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    array = np.random.default_rng(0).random((3, 8, 8)).astype(np.float32)
    path = volume(folder / "thin.nii.gz", array)
    return [str(folder / "fixed3d.nii.gz"), str(path)], ("thin.nii.gz", "shape", "3, 8, 8")


def zero_spacing(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    path = volume(folder / "flat.nii")
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, NIFTI_SPACING, 0.0)
    path.write_bytes(data)
    return [str(folder / "fixed3d.nii.gz"), str(path)], ("flat.nii", "pixdim", "0")


def singular_direction(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    path = folder / "singular.mha"
    head = ("ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
            "TransformMatrix = 1 0 0 1 0 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\nDimSize = 8 8 8\n"
            "ElementType = MET_UCHAR\nElementDataFile = LOCAL\n")
    path.write_bytes(head.encode() + np.arange(512, dtype=np.uint8).tobytes())
    return [str(path), str(folder / "moving3d.nii.gz")], ("singular.mha", "TransformMatrix", "1")


def flat_and_volume(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    return ([str(folder / "fixed2d.nii.gz"), str(folder / "moving3d.nii.gz")],
            ("moving3d.nii.gz", "3D", "fixed2d.nii.gz", "2D"))


def several_channels(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    image = sitk.GetImageFromArray(np.random.default_rng(0).random((8, 8, 8, 3)).astype(np.float32), isVector=True)
    sitk.WriteImage(image, str(folder / "colour.nii.gz"))
    return [str(folder / "colour.nii.gz"), str(folder / "moving3d.nii.gz")], ("colour.nii.gz", "channels", "3")


def truncated_image(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    whole = (folder / "fixed3d.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[:len(whole) // 2])
    return [str(folder / "cut.nii.gz"), str(folder / "moving3d.nii.gz")], ("cut.nii.gz",)


def truncated_after_unpacking(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    whole = gzip.decompress((folder / "fixed3d.nii.gz").read_bytes())
    (folder / "short.nii").write_bytes(whole[:len(whole) // 2])
    return [str(folder / "short.nii"), str(folder / "moving3d.nii.gz")], ("short.nii", "truncated")


def missing_file(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    return [str(folder / "nowhere.nii.gz"), str(folder / "moving3d.nii.gz")], ("nowhere.nii.gz", "no such file")


def missing_landmarks(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    (folder / "three.csv").write_text("x,y,z\n1,2,3\n4,5,6\n7,8,9\n")
    (folder / "two.csv").write_text("x,y,z\n1,2,3\n4,5,6\n")
    return ([*good(folder), "--landmarks", str(folder / "three.csv"), str(folder / "two.csv")],
            ("two.csv", "number of landmarks", "2", "3"))


def landmarks_in_2d(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    (folder / "flat.csv").write_text("x,y\n1,2\n")
    return ([*good(folder), "--landmarks", str(folder / "flat.csv"), str(folder / "flat.csv")],
            ("flat.csv", "shape", "(1, 2)"))


def empty_labels(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    path = volume(folder / "empty.nii.gz", np.zeros((8, 8, 8), np.uint8))
    return [*good(folder), "--labels", str(path), str(path)], ("empty.nii.gz", "labels", "0")


def out_is_a_file(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    (folder / "taken").write_text("mine")
    return [*good(folder), "-o", str(folder / "taken")], ("taken", "file")


def out_without_a_name(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    return [*good(folder), "-o", ""], ("name ''", "-o")


def out_where_nothing_can_be_written(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    return [*good(folder), "-o", "/proc/results"], ("/proc/results", "cannot be written")


def mask_of_another_place(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    write_image(folder / "far.nrrd", np.ones((8, 8, 8), np.uint8), Grid.centered((8, 8, 8), 4.0, (5e3, 0.0, 0.0)))
    return ([*good(folder), "--deform", "adam", "--masks", *[str(folder / "far.nrrd")] * 2],
            ("far.nrrd", "0 in every voxel", "fixed3d.nii.gz"))


def mask_in_2d(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    write_image(folder / "flat.nrrd", np.ones((8, 8), np.uint8), Grid.centered((8, 8), 4.0))
    return ([*good(folder), "--deform", "adam", "--masks", *[str(folder / "flat.nrrd")] * 2],
            ("flat.nrrd", "2D", "3D"))


def fill_that_is_no_number(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    return [*good(folder), "--fill", "nan"], ("fill is nan",)


def good(folder: Path) -> list[str]:
    return [str(folder / "fixed3d.nii.gz"), str(folder / "moving3d.nii.gz")]


def agent_of_2d(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    path = checkpoint(folder / "flat.safetensors", 2)
    return [*good(folder), "--agent", str(path)], ("fixed3d.nii.gz", "3D", "flat.safetensors", "2D")


def weights_of_another_env(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    path = checkpoint(folder / "other.safetensors", 3, config=toy_config(3, size=32))
    return [*good(folder), "--agent", str(path)], ("other.safetensors", "tensor", "shape", "another env")


def unknown_env(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    path = checkpoint(folder / "old.safetensors", 3, config=toy_config(3) | {"env": "RegGone-v7"})
    return [*good(folder), "--agent", str(path)], ("old.json", "config", "RegGone")


def another_algorithm(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    path = checkpoint(folder / "ppo.safetensors", 3, algorithm="PPO")
    return [*good(folder), "--agent", str(path)], ("ppo.safetensors", "algorithm", "PPO")


def missing_tensor(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    from safetensors.torch import load_file, save_file

    path = checkpoint(folder / "part.safetensors", 3)
    tensors = load_file(path)
    del tensors["q_net.0.bias"]
    save_file(tensors, path)
    return [*good(folder), "--agent", str(path)], ("part.safetensors", "q_net.0.bias", "missing")


def truncated_weights(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    path = checkpoint(folder / "cut.safetensors", 3)
    path.write_bytes(path.read_bytes()[:200])
    return [*good(folder), "--agent", str(path)], ("cut.safetensors", "truncated")


def card_is_not_json(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    path = checkpoint(folder / "card.safetensors", 3)
    path.with_suffix(".json").write_text("{")
    return [*good(folder), "--agent", str(path)], ("card.json", "not JSON")


def card_of_another_version(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    path = checkpoint(folder / "future.safetensors", 3, card_version=99)
    return [*good(folder), "--agent", str(path)], ("future.json", "card_version", "99")


def no_such_agent(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    return [*good(folder), "--agent", "haed"], ("haed", "no such file")


REGISTER: list[Bad] = [
    nan_voxel, one_voxel_axis, three_voxel_axis, zero_spacing, singular_direction, flat_and_volume, several_channels,
    truncated_image, truncated_after_unpacking, missing_file, missing_landmarks, landmarks_in_2d, empty_labels,
    out_is_a_file, out_without_a_name, out_where_nothing_can_be_written, mask_of_another_place, mask_in_2d,
    fill_that_is_no_number, agent_of_2d, weights_of_another_env, unknown_env, another_algorithm, missing_tensor,
    truncated_weights, card_is_not_json, card_of_another_version, no_such_agent]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    for ndim in (2, 3):
        image_pair(folder, ndim)
        checkpoint(folder / f"toy{ndim}d.safetensors", ndim)
    return folder


@pytest.fixture
def folder(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals, tmp_path / "data"))


def told(capture: pytest.CaptureFixture[str], *parts: str) -> None:
    """One line on stderr, nothing on stdout, and the parts in it."""
    out, err = capture.readouterr()
    assert out == ""
    assert err.startswith("regagents: ") and err.count("\n") == 1 and err.endswith("\n")
    for part in parts:
        assert part in err, err


@pytest.mark.parametrize("bad", REGISTER, ids=lambda bad: bad.__name__)
def test_bad_input_is_one_line_and_nothing_written(bad: Bad, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments, parts = bad(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*")}
    defaults = [] if "--agent" in arguments else ["--agent", str(folder / "toy3d.safetensors")]
    assert main(["register", "-o", str(folder / "deep" / "OUT"), *defaults, *arguments]) == 2
    told(capfd, *parts)
    assert {path: path.read_bytes() for path in folder.rglob("*")} == before


def test_good_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "points.csv").write_text("x,y,z\n1,2,3\n4,5,6\n")
    agent = str(folder / "toy3d.safetensors")
    arguments = ["register", *good(folder), "-o", str(folder / "deep" / "OUT"), "--agent", agent, "--no-refine",
                 "--landmarks", str(folder / "points.csv"), str(folder / "points.csv")]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "TRE: before 0.00 mm" in out and "mutual information" in out and "verdict: " in out and err == ""
    assert {"transform.tfm", "warped.nii.gz", "overlay.png", "trace.csv", "metrics.json"} <= {
        path.name for path in (folder / "deep" / "OUT").iterdir()}
    assert not list(folder.rglob(".*"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_nothing(folder: Path, capsys: pytest.CaptureFixture[str],
                                                monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(results.render, "write_png", fail)
    before = set(folder.rglob("*"))
    status = main(["register", *good(folder), "-o", str(folder / "OUT"), "--agent", str(folder / "toy3d.safetensors"),
                   "--no-refine"])
    assert status == (2 if isinstance(error, OSError) else 130)
    told(capsys)
    assert set(folder.rglob("*")) == before


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What register is given; nothing is registered, and the verdict is the dict's own ``verdict``."""
    found: dict[str, Any] = {"verdict": {"state": "aligned", "probability": 0.98, "reasons": []}}

    def register(fixed: Any, moving: Any, agent: Any, **options: Any) -> SimpleNamespace:
        found.update(options, fixed=fixed, moving=moving, agent=agent)
        metrics = {"agent": ["toy"], "starts": 1, "seconds": {"agent": 1.0}, "similarity": {"start": None},
                   "notes": ["pixdim was kept"], "verdict": found["verdict"]}
        return SimpleNamespace(metrics=metrics, save=lambda out: found.update(out=out))

    monkeypatch.setattr(registration, "register", register)
    return found


@pytest.mark.parametrize(("state", "status"), [("aligned", 0), ("doubtful", 3), ("failed", 3)])
def test_the_verdict_is_one_line_and_strict_makes_it_the_status(
        state: str, status: int, folder: Path, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    asked["verdict"] = {"state": state, "probability": 0.4321, "reasons": ["little overlap", "the lanes disagree"]}
    command = ["register", *good(folder), "-o", str(folder / "OUT")]
    assert main(command) == 0 and main([*command, "--strict"]) == status
    out, err = capsys.readouterr()
    assert out.count(f"verdict: {state} (0.43): little overlap; the lanes disagree\n") == 2 and err == ""
    assert f"report: {folder / 'OUT' / 'report.html'}\n" in out and "pixdim was kept\n" in out


def test_register_is_asked_for_what_was_typed(folder: Path, asked: dict[str, Any]) -> None:
    command = ["register", *good(folder), "-o", str(folder / "OUT")]
    assert main(command) == 0
    assert {"agent": "auto", "initial": None, "transform": "rigid", "masks": None, "labels": None,
            "refine": True}.items() <= asked.items()
    assert main([*command, "--agent", "none", "--init", "header", "--transform", "affine", "--no-refine"]) == 0
    assert {"agent": "none", "initial": "header", "transform": "affine", "refine": False}.items() <= asked.items()


def test_the_spacing_is_that_of_every_image_without_one(tmp_path: Path, asked: dict[str, Any]) -> None:
    path = tmp_path / "slice.png"
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(64, dtype=np.uint8).reshape(8, 8)), str(path))
    two = [str(path)] * 2
    assert main(["register", *two, "-o", str(tmp_path / "OUT"), "--spacing", "2.5", "--masks", *two,
                 "--labels", *two]) == 0
    images = asked["fixed"], asked["moving"], *asked["masks"], *asked["labels"]
    assert [image.grid.spacing for image in images] == [(2.5, 2.5)] * 6


def test_a_volume_of_a_series_in_time_is_chosen_by_number(folder: Path, tmp_path: Path, asked: dict[str, Any],
                                                          capfd: pytest.CaptureFixture[str]) -> None:
    series = np.random.default_rng(0).random((3, 8, 8, 8)).astype(np.float32)
    path = tmp_path / "series.nii.gz"
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(volume) for volume in series]), str(path))
    single, out = str(folder / "fixed3d.nii.gz"), ["-o", str(tmp_path / "OUT"), "--time"]
    assert main(["register", single, str(path), *out[:2]]) == 2
    told(capfd, "series.nii.gz", "8 x 8 x 8 x 3", "--time N")
    for pair in ((single, str(path)), (str(path), single), (str(path), str(path))):
        assert main(["register", *pair, *out, "2"]) == 0
        np.testing.assert_array_equal(asked["fixed" if pair[0] == str(path) else "moving"].array, series[2])
    capfd.readouterr()
    for pair, number, name in (((single, str(path)), "3", "series.nii.gz"), ((single, single), "2", "fixed3d.nii.gz"),
                               ((single, "gone.mha"), "2", "gone.mha: no such file")):
        assert main(["register", *pair, *out, number]) == 2
        told(capfd, name)


# ------------------------------------------------------------------------------------------- evaluate, train, agents

SMALL = json.dumps({"size": 32, "spacing": 8.0, "source": {"name": "phantoms", "patients": 2, "bank_spacing": 4.0}})


def test_evaluate_prints_and_writes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--env", "RegRigid2D-v0", "--env-kwargs", SMALL, "--pairs", "2", "--baselines", "initial",
                 "--agent", str(folder / "toy2d.safetensors"), "--json", str(folder / "r.json"),
                 "--csv", str(folder / "r.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["method", str(folder / "toy2d.safetensors"), "initial"]
    assert json.loads((folder / "r.json").read_text())["pairs"] == 2
    assert len((folder / "r.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(("arguments", "part"), [
    (["--env", "RegGone-v0"], "RegGone-v0"),
    (["--env", "CartPole-v1"], "CartPole-v1"),
    (["--env", "RegRigid2D-v0", "--env-kwargs", "{"], "not JSON"),
    (["--env", "RegRigid2D-v0", "--env-kwargs", "[1]"], "[1]"),
    (["--env", "RegRigid2D-v0", "--env-kwargs", '{"sise": 3}'], "sise"),
    (["--env", "RegRigid2D-v0", "--env-kwargs", '{"source": "moon"}'], "moon"),
    (["--env", "RegRigid2D-v0", "--env-kwargs", SMALL, "--pairs", "0"], "pairs is 0"),
    (["--env", "RegRigid2D-v0", "--baselines", "ants"], "ants"),
    (["--env", "RegRigid2D-v0", "--baselines", ""], "no method"),
    (["--env", "RegRigid2D-v0", "--baselines", "initial,initial"], "initial, initial"),
    (["--env", "RegRigid2D-v0", "--env-kwargs", SMALL, "--baselines", "mi-multistart"], "no agent"),
    (["--env", "RegRigid2D-v0", "--agent", "haed"], "haed"),
    (["--env", "RegRigid2D-v0", "--json", "/no/such/folder/r.json"], "/no/such/folder"),
])
def test_evaluate_refuses_in_one_line(arguments: list[str], part: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *arguments]) == 2
    told(capfd, part)


@pytest.mark.parametrize(("arguments", "part"), [
    (["haed"], "haed"), (["rigid2d", "--steps", "0"], "steps is 0"), (["rigid2d", "--init", "haed"], "haed"),
    (["rigid2d", "--device", "abacus"], "abacus")])
def test_train_refuses_in_one_line(arguments: list[str], part: str, tmp_path: Path,
                                   capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *arguments, "--out", str(tmp_path / "out")]) == 2
    told(capfd, part)
    assert not (tmp_path / "out").exists()


def test_train_notes_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    source = {"name": "phantoms", "patients": 2, "bank_spacing": 8.0}
    monkeypatch.setitem(presets.PRESETS, "tiny", toy_config(2, size=8, source=source) | {"steps": 48})
    out = tmp_path / "a folder"
    assert main(["train", "tiny", "--out", str(out), "--seed", "3"]) == 0
    assert capsys.readouterr().out.strip() == str(out / "tiny.safetensors")
    card = json.loads((out / "tiny.json").read_text())
    assert card["command"] == f"regagents train tiny --out '{out}' --seed 3"
    assert (card["seed"], card["samples"]) == (3, 48)


def test_agents_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["agents"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in AGENTS)
