"""Whatever a file holds, a command ends with one line that names it, status 2, and the file as it was."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from regagents import agents
from regagents.cli import main
from regagents.training import presets
from regenv import cli as regenv
from regenv.transforms.deformation_model import DeformationModel
from tests.regagents.toys import checkpoint, image_pair, toy_config

SMALL = {"size": 32, "spacing": 8.0, "source": {"name": "phantoms", "patients": 2, "bank_spacing": 4.0}}
TEXTS: dict[str, bytes] = {
    "empty": b"", "zeros": bytes(64), "binary": b"\xff\xfe\x00\x80" * 50, "deep lists": b"[" * 100_000 + b"\n",
    "deep objects": b'{"key":' * 100_000 + b"\n", "long number": b'{"card_version": ' + b"1" * 5000 + b"}\n",
    "NaN": b"NaN\n", "infinite": b'{"card_version": 1e999}\n', "null": b"null\n", "a list": b'["a"]\n',
    "a text": b'"a"\n',
    "twice": b'{"card_version": 1, "card_version": 1}\n', "an object": b"{}\n",
    "surrogate": b'{"\\ud800": "\\udfff"}\n',
    "quotes": b'"' * 1000 + b"\n", "large": b" " * (2 << 20)}


def weights(kind: str, path: Path) -> None:
    """Damage a file of tensors."""
    whole = path.read_bytes()
    tensors = load_file(path)
    first = next(name for name, value in tensors.items() if value.is_floating_point())
    header = struct.pack("<Q", 1 << 62) if kind == "header's length" else whole[:8]
    if kind in ("NaN", "doubles", "bytes", "no tensors", "negative"):
        changed = {"NaN": tensors[first] * torch.nan, "doubles": tensors[first].double(),
                   "bytes": torch.zeros(tensors[first].shape, dtype=torch.uint8), "negative": -tensors[first]}
        save_file({} if kind == "no tensors" else {**tensors, first: changed[kind]}, path)
    else:
        path.write_bytes({"empty": b"", "cut": whole[:len(whole) // 2], "cut header": whole[:20],
                          "header's length": header + whole[8:], "header": whole[:8] + b"{" * (len(whole) - 8),
                          "longer": whole + bytes(8)}[kind])


WEIGHTS = ["empty", "cut", "cut header", "header's length", "header", "longer", "NaN", "doubles", "bytes", "no tensors"]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    image_pair(folder, 3)
    checkpoint(folder / "toy3d.safetensors", 3)
    checkpoint(folder / "toy2d.safetensors", 2)
    (folder / "model").mkdir()
    generator = torch.Generator().manual_seed(0)
    model = DeformationModel.fit(torch.randn(6, 2, 5, 5, generator=generator), 3, (12, 12))
    model.save(folder / "model" / "model.safetensors")
    np.savetxt(folder / "points.csv", [[1, 2, 3], [4, 5, 6]], delimiter=",", header="x,y,z", comments="")
    return folder


@pytest.fixture
def folder(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals, tmp_path / "data"))


def register(folder: Path, *options: str) -> list[str]:
    return ["register", str(folder / "fixed3d.nii.gz"), str(folder / "moving3d.nii.gz"), "-o", str(folder / "OUT"),
            "--no-refine", *options]


def evaluate(*options: str, env: str = "RegRigid2D-v0", kwargs: object = None) -> list[str]:
    return ["evaluate", "--env", env, "--pairs", "1", "--env-kwargs", json.dumps(SMALL if kwargs is None else kwargs),
            *(() if "--agent" in options else ("--baselines", "initial")), *options]


CARDS: dict[str, Callable[[Path], list[str]]] = {
    "register": lambda folder: register(folder, "--agent", str(folder / "toy3d.safetensors")),
    "register --deform": lambda folder: register(folder, "--agent", "none", "--deform",
                                                 str(folder / "toy3d.safetensors")),
    "evaluate": lambda folder: evaluate("--agent", str(folder / "toy3d.safetensors")),
    "train --init": lambda folder: ["train", "tiny", "--out", str(folder / "OUT"), "--init",
                                    str(folder / "toy3d.safetensors")],
    "train --resume": lambda folder: ["train", "tiny", "--out", str(resumable(folder)), "--resume"],
    "agents": lambda folder: ["agents"]}


def resumable(folder: Path) -> Path:
    """A run whose last state is the toy's files."""
    (folder / "run").mkdir(exist_ok=True)
    for suffix in ("safetensors", "json"):
        shutil.copy(folder / f"toy3d.{suffix}", folder / "run" / f"state.{suffix}")
    return folder / "run"


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A small preset; the shipped weights are those of the folder."""
    monkeypatch.setitem(presets.PRESETS, "tiny", toy_config(2, size=8, source=SMALL["source"]) | {"steps": 48})
    monkeypatch.setattr(agents, "WEIGHTS", folder)


def refused(command: list[str], name: str, folder: Path, capture: pytest.CaptureFixture[str],
            run: Callable[[list[str]], int] = main) -> str:
    """The line on stderr."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    status = run(command)
    out, err = capture.readouterr()
    assert status == 2, (status, out, err)
    assert out == "" and err.count("\n") == 1 and len(err) < 2000 and name in err and "unexpected" not in err, err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return err


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("command", CARDS)
def test_a_damaged_card_is_named(command: str, text: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "toy3d.json").write_bytes(TEXTS[text])
    typed = CARDS[command](folder)
    refused(typed, "state.json" if command == "train --resume" else "toy3d.json", folder, capfd)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("command", [name for name in CARDS if name != "agents"])
def test_damaged_weights_are_named(command: str, kind: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights(kind, folder / "toy3d.safetensors")
    typed = CARDS[command](folder)
    if command == "train --init" and kind in ("doubles", "bytes"):
        pytest.skip("the others are taken over")
    told = refused(typed, "", folder, capfd)
    assert "toy3d" in told or "state.safetensors" in told or "config differs" in told or "L2O is needed" in told, told


@pytest.mark.parametrize("kind", [*WEIGHTS, "negative"])
def test_a_damaged_deformation_model_is_named(kind: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = folder / "model" / "model.safetensors"
    weights(kind, path)
    refused(evaluate(env="RegSDM2D-v0", kwargs={"model": str(path)}), "model.safetensors", folder, capfd)


@pytest.mark.parametrize("text", [name for name in TEXTS if name not in ("empty",)])
def test_a_damaged_ledger_is_named(text: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "ledger.jsonl").write_bytes(TEXTS[text].rstrip(b"\n") + b"\n")
    refused(evaluate("--ledger", str(folder / "ledger.jsonl")), "ledger.jsonl: ", folder, capfd)


@pytest.mark.parametrize("text", [*TEXTS, "columns", "words"])
def test_damaged_landmarks_are_named(text: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    more = {"columns": b"x,y,z\n1,2,3,4\n", "words": b"x,y,z\n1,two,3\n"}
    (folder / "bad.csv").write_bytes({**TEXTS, **more}[text])
    refused(register(folder, "--agent", "none", "--landmarks", str(folder / "bad.csv"), str(folder / "points.csv")),
            "bad.csv", folder, capfd)


@pytest.mark.parametrize("text", [name for name in TEXTS if name not in ("an object", "binary", "zeros", "surrogate")])
@pytest.mark.parametrize("command", [
    ["evaluate", "--env", "RegRigid2D-v0"], ["record", "toy/toy-v0", "--env", "RegRigid2D-v0"],
    ["compare", "--env", "RegRigid2D-v0", "--agents", "dsl", "--budget", "1"]])
def test_arguments_that_are_no_object_are_named(command: list[str], text: str, folder: Path,
                                                capfd: pytest.CaptureFixture[str]) -> None:
    if text == "large":
        pytest.skip("a command line is shorter")
    refused([*command, "--env-kwargs", TEXTS[text].decode()], "--env-kwargs", folder, capfd)


@pytest.mark.parametrize("given", [
    {"size": "x"}, {"size": True}, {"size": 10**9}, {"source": {"name": {}}}, {"spacing": []}, {"surprise": 1},
    {"source": {"name": "phantoms", "patients": []}}])
def test_arguments_of_other_types_are_named(given: dict[str, object], folder: Path,
                                            capfd: pytest.CaptureFixture[str]) -> None:
    refused(evaluate(kwargs=given), next(iter(given)), folder, capfd)


@pytest.mark.parametrize("text", TEXTS)
def test_a_damaged_data_set_is_named(text: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "set").mkdir()
    (folder / "set" / "dataset.json").write_bytes(TEXTS[text])
    source = {"name": "folder", "layout": "learn2reg", "folder": str(folder / "set")}
    refused(evaluate(env="RegDense3D-v0", kwargs={"source": source, "size": 8}), "dataset.json", folder, capfd)


@pytest.mark.parametrize("typed", [["sdm", "2", "-o", "{}/OUT.safetensors", "--promise12", "{}"],
                                   ["sdm", "2", "-o", "{}/OUT.safetensors", "--prostate3t", "{}/none"],
                                   ["data", "get", "../etc"]])
def test_the_command_of_the_environments_does_likewise(typed: list[str], folder: Path,
                                                       capfd: pytest.CaptureFixture[str]) -> None:
    refused([word.format(folder) for word in typed], "regenv: ", folder, capfd, regenv.main)
