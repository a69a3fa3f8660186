"""What is left when a command is killed, when the disk is full, and when two of them write into one place: one table.

    python benchmarks/durability.py                                     # all of it, about half an hour on two cores
    python benchmarks/durability.py --commands train --moments 3        # a first look

Every run must leave what it writes whole or not at all; a killed training must lose no more than one interval between
checkpoints, a killed evaluation no finished part; and the next run must succeed, give the undisturbed run's results and
leave nothing hidden behind. The commands are the real ones on small inputs, in processes of their own.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIGNALS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
DISK = (1_000, 20_000, 200_000)     # bytes that a file may have
KEEP_EVERY, SLACK = 0.3, 2.0        # s between checkpoints; s for writing one
BEGUN, LIMIT, PAIRS = "begun", 900, 96
SMALL = json.dumps({"size": 32, "spacing": 8.0, "source": {"name": "phantoms", "patients": 2, "bank_spacing": 4.0}})
PRESET = {"env": "RegRigid2D-v0", "steps": 48 * 400, "algorithm": {"sampler_kwargs": {"near": 0.3}},
          "policy_kwargs": {"features_extractor_kwargs": {"widths": [8], "strides": [4], "features_dim": 8}},
          "env_kwargs": {"size": 16, "spacing": 16.0, "observation": "pair", "targets": "drop",
                         "source": {"name": "phantoms", "patients": 2, "bank_spacing": 8.0}}}
MEMBERS = {name: bytes(range(256)) * size for name, size in (("head.bin", 60_000), ("mask.bin", 4_000))}
CAPABILITIES = (1, 2)               # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root ignores modes
DROP = 24                           # prctl(PR_CAPBSET_DROP)


# ------------------------------------------------------------------------------------------- in a process of its own

def child(command: str, folder: Path, out: Path) -> int:
    """Run a command, say when it begins."""
    from regagents import cli as regagents
    from regagents.training import presets, train
    from regenv import cli as regenv
    from regenv.data.banks import downloads

    if command == "train":
        presets.PRESETS["tiny"] = PRESET
        train.train.__kwdefaults__, defaults = None, list(train.train.__defaults__ or ())
        defaults[defaults.index(120.0)] = KEEP_EVERY
        train.train.__defaults__ = tuple(defaults)
        train.CheckpointCallback._on_step = noted(train.CheckpointCallback._on_step, out.with_name("steps"))
    if command == "data get":
        downloads.DATASETS["fake"] = fake(folder)
        os.environ |= {"REGENV_DATA": str(out), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder / "index")}
    images = [str(folder / name) for name in ("fixed.nii.gz", "moving.nii.gz")]
    typed: dict[str, tuple[Callable[..., int], list[str]]] = {
        "register": (regagents.main, ["register", *images, "-o", str(out), "--agent", "none"]),
        "train": (regagents.main, ["train", "tiny", "--out", str(out), "--resume"]),
        "evaluate": (regagents.main, ["evaluate", "--env", "RegRigid2D-v0", "--env-kwargs", SMALL,
                                      "--pairs", str(PAIRS), "--baselines", "initial,mi",
                                      "--ledger", str(out / "ledger.jsonl"),
                                      "--json", str(out / "report.json")]),
        "data get": (regenv.main, ["data", "get", "fake"])}
    main, arguments = typed[command]
    print(BEGUN, flush=True)
    return main(arguments)


def noted(on_step: Callable[[Any], bool], note: Path) -> Callable[[Any], bool]:
    """A callback that notes when the first and the last step were taken: the file's content and its time."""
    note.unlink(missing_ok=True)

    def noting(callback: Any) -> bool:
        if note.exists():
            os.utime(note)
        else:
            note.write_text(str(time.time()))
        return on_step(callback)

    return noting


def fake(folder: Path) -> Any:
    """A data set in a local index."""
    from regenv.data.banks.downloads import Wheel

    wheel = next((folder / "index").glob("*.whl"))
    return Wheel("durabilityfake==1.0", hashlib.sha256(wheel.read_bytes()).hexdigest(),
                 {name: f"durabilityfake/{name}" for name in MEMBERS},
                 {name: hashlib.sha256(content).hexdigest() for name, content in MEMBERS.items()},
                 "a fake", "durabilityfake-1.0.dist-info/LICENSE", "CC0", "Nobody, 2026.")


# -------------------------------------------------------------------------------------------------- inputs and checks

def prepare(folder: Path) -> None:
    """Small images, and a local package index with one wheel."""
    import numpy as np

    from regenv.data.io.writing import write_image
    from regenv.grid import Grid

    rows, columns = np.mgrid[:96, :96]
    for name, shift in (("fixed", 0), ("moving", 4)):
        image = np.exp(-((rows - 45) ** 2 + (columns - 40 - shift) ** 2) / 300) + 0.3 * (np.hypot(
            rows - 50, columns - 50 - shift) < 35)
        write_image(folder / f"{name}.nii.gz", image.astype(np.float32), Grid.centered((96, 96), 2.0))
    (folder / "index").mkdir()
    with zipfile.ZipFile(folder / "index" / "durabilityfake-1.0-py3-none-any.whl", "w") as archive:
        info = "durabilityfake-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: durabilityfake\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        for name, content in {"LICENSE": b"CC0", "RECORD": b""}.items():
            archive.writestr(f"{info}/{name}", content)
        for name, content in MEMBERS.items():
            archive.writestr(f"durabilityfake/{name}", content)


def hidden(*folders: Path) -> list[str]:
    """Scratch that was left."""
    return [f"scratch {path.name}" for folder in folders if folder.is_dir() for path in folder.rglob(".*")]


def register_faults(out: Path, done: bool) -> list[str]:
    names = {"transform.tfm", "warped.nii.gz", "overlay.png", "trace.csv", "metrics.json"}
    here = {path.name for path in out.glob("[!.]*")} if out.is_dir() else set()
    if not here:
        return ["no result"] if done else []
    faults = [] if names <= here else [f"partial: {', '.join(sorted(here))}"]
    if names <= here:
        json.loads((out / "metrics.json").read_text())
        faults += [f"empty {name}" for name in names if not (out / name).stat().st_size]
    return faults


def train_faults(out: Path, done: bool) -> list[str]:
    from regagents.common import checkpoints

    faults, state = [], out / "state.safetensors"
    for path in (state, out / "tiny.safetensors"):
        if path.exists() or done:
            try:
                card = checkpoints.load(path)[1]
            except ValueError as error:
                faults.append(str(error))
            else:
                faults += [f"samples {card['samples']}"] if done and card["samples"] < PRESET["steps"] else []
    note = out.with_name("steps")
    if not done and note.exists():
        first = state.stat().st_mtime if state.exists() else float(note.read_text())
        lost = note.stat().st_mtime - first
        faults += [f"{lost:.1f} s of training lost"] if lost > KEEP_EVERY + SLACK else []
    return faults


def evaluate_faults(out: Path, done: bool) -> list[str]:
    from regagents.evaluation.pairs import CHUNK

    ledger, faults = out / "ledger.jsonl", []
    lines = ledger.read_bytes().split(b"\n")[:-1] if ledger.exists() else []
    keys = [json.loads(line).get("key") for line in lines][1:]
    if len(set(keys)) < len(keys):
        faults.append("parts were done twice")
    if done:
        report = json.loads((out / "report.json").read_text())
        parts = 2 * -(-PAIRS // CHUNK)
        faults += [] if report["pairs"] == PAIRS and len(keys) == parts else [f"{len(keys)} of {parts} parts"]
    elif (out / "report.json").exists():
        json.loads((out / "report.json").read_text())
    return faults


def data_faults(out: Path, done: bool) -> list[str]:
    folder = out / "fake"
    if not folder.is_dir():
        return ["no data"] if done else []
    return [f"partial: {name}" for name, content in MEMBERS.items()
            if not (folder / name).is_file() or (folder / name).read_bytes() != content]


FAULTS: dict[str, Callable[[Path, bool], list[str]]] = {
    "register": register_faults, "train": train_faults, "evaluate": evaluate_faults, "data get": data_faults}


# ---------------------------------------------------------------------------------------------------------- the trials

@dataclass
class Row:
    """A row of the table: how often something was tried, and what was wrong."""

    command: str
    trial: str
    tries: int = 0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"| {self.command} | {self.trial} | {self.tries} | {'; '.join(dict.fromkeys(self.faults)) or 'none'} |"


def begin(command: str, folder: Path, out: Path, setup: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    """Start a command; returns when its work begins."""
    process = subprocess.Popen([sys.executable, __file__, "--child", command, str(folder), str(out)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=setup,
                               env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"})
    assert process.stdout is not None
    process.stdout.readline()
    return process


def finished(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit status and lines on stderr of a command, beside warnings of the log."""
    told = process.communicate(timeout=LIMIT)[1]
    return process.returncode, [line for line in told.splitlines() if line.startswith(("reg", "Traceback"))]


def run(command: str, folder: Path, out: Path, setup: Callable[[], None] | None = None) -> tuple[int, list[str]]:
    """Run a command to its end."""
    return finished(begin(command, folder, out, setup))


def checked(row: Row, command: str, out: Path, done: bool) -> None:
    """Add what is wrong with what a run left."""
    try:
        row.faults += FAULTS[command](out, done)
    except (OSError, ValueError, KeyError) as error:
        row.faults.append(f"{type(error).__name__}: {error}")


def sound(command: str, out: Path) -> bool:
    """Whether a run has left all that it should."""
    row = Row(command, "")
    checked(row, command, out, True)
    return not row.faults


def succeeds(row: Row, command: str, folder: Path, out: Path) -> None:
    """The next run: it ends well, what it leaves is whole, and nothing hidden stays."""
    status, told = run(command, folder, out)
    row.faults += [] if status == 0 else [f"next run: {status} {' '.join(told)[:160]}"]
    checked(row, command, out, True)
    row.faults += hidden(out.parent)


def killed(command: str, folder: Path, seconds: float, moments: int, rng: random.Random) -> Iterator[Row]:
    """At random moments of its work, by each signal in turn."""
    rows = {sent: Row(command, sent.name) for sent in SIGNALS}
    for number in range(moments):
        sent = list(SIGNALS)[number % len(SIGNALS)]
        row = rows[sent]
        with place(folder) as out:
            process = begin(command, folder, out)
            time.sleep(rng.uniform(0, seconds))
            process.send_signal(sent)
            status, told = finished(process)
            row.tries += 1
            late = status == -sent and sound(command, out)      # its work was done
            if not late and (status not in (0, SIGNALS[sent]) or len(told) != (status > 0)):
                row.faults.append(f"status {status}, {len(told)} lines {' '.join(told)[:160]}")
            checked(row, command, out, False)
            row.faults += hidden(out.parent) if sent != signal.SIGKILL else []
            succeeds(row, command, folder, out)
    yield from (row for row in rows.values() if row.tries)


def full_disk(command: str, folder: Path) -> Row:
    """No file may grow beyond some sizes."""
    row = Row(command, "full disk")
    for size in DISK:
        with place(folder) as out:
            status, told = run(command, folder, out, lambda size=size: resource.setrlimit(  # type: ignore[misc]
                resource.RLIMIT_FSIZE, (size, size)))
            row.tries += 1
            if status not in (0, 2) or len(told) != (status == 2):
                row.faults.append(f"{size} bytes: status {status}, {len(told)} lines {' '.join(told)[:160]}")
            checked(row, command, out, status == 0)
            row.faults += hidden(out.parent)
            succeeds(row, command, folder, out)
    return row


def two_writers(command: str, folder: Path) -> Row:
    """Two runs into one place at once: one of them may refuse."""
    row = Row(command, "two writers")
    with place(folder) as out:
        processes = [begin(command, folder, out) for _ in range(2)]
        ended = [finished(process) for process in processes]
        row.tries += 1
        if sorted(status for status, _ in ended) not in ([0, 0], [0, 2]):
            row.faults.append(f"statuses {[status for status, _ in ended]} {ended[-1][1]}")
        checked(row, command, out, True)
        row.faults += hidden(out.parent)
    return row


def read_only(command: str, folder: Path) -> Row:
    """A place that cannot be written: refused in one line, before the work."""
    row = Row(command, "read-only")

    def without_rights() -> None:
        for capability in CAPABILITIES:
            ctypes.CDLL(None).prctl(DROP, capability)

    with place(folder) as out:
        out.mkdir(exist_ok=True)
        out.chmod(0o555)
        status, told = run(command, folder, out, without_rights)
        out.chmod(0o755)
        row.tries += 1
        row.faults += [] if status == 2 and len(told) == 1 else [f"status {status}, {told}"]
        row.faults += [f"left {path.name}" for path in out.iterdir()]
    return row


def mount_point(command: str, folder: Path) -> Row:
    """A place on, and a link to, another file system."""
    row = Row(command, "mount point")
    with place(folder) as out, tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        out.mkdir(exist_ok=True)
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(out)], capture_output=True).returncode == 0:
            try:
                row.tries += 1
                succeeds(row, command, folder, out)
            finally:
                subprocess.run(["umount", str(out)], check=True)
        link = out.with_name("link")
        link.symlink_to(other)
        row.tries += 1
        succeeds(row, command, folder, link)
        row.faults += hidden(Path(other))
    return row


@contextmanager
def place(folder: Path) -> Iterator[Path]:
    """A new place for the results of a run; what the evaluation needs exists already."""
    parent = Path(tempfile.mkdtemp(dir=folder, prefix="run"))
    (parent / "out").mkdir()
    try:
        yield parent / "out"
    finally:
        with suppress(OSError):
            (parent / "out").chmod(0o755)
        shutil.rmtree(parent)


def table(commands: Sequence[str], moments: int, seed: int, trials: Sequence[str]) -> list[Row]:
    """All rows of some commands."""
    rows: list[Row] = []
    others = {"disk": full_disk, "writers": two_writers, "read-only": read_only, "mount": mount_point}
    with tempfile.TemporaryDirectory(prefix="durability") as made:
        folder = Path(made)
        prepare(folder)
        for command in commands:
            first = Row(command, "undisturbed", 1)
            with place(folder) as out:
                succeeds(first, command, folder, out)       # compiles kernels
            with place(folder) as out:
                process, start = begin(command, folder, out), time.monotonic()
                finished(process)
                seconds = time.monotonic() - start
            rows.append(first)
            if "kill" in trials:
                rows += killed(command, folder, seconds, moments, random.Random(seed))
            rows += [trial(command, folder) for name, trial in others.items() if name in trials]
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 where anything is wrong."""
    typed = list(sys.argv[1:] if argv is None else argv)
    if typed[:1] == ["--child"]:
        return child(typed[1], Path(typed[2]), Path(typed[3]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", default=",".join(FAULTS), help="default all")
    parser.add_argument("--trials", default="kill,disk,writers,read-only,mount", help="default all")
    parser.add_argument("--moments", type=int, default=15, help="at which each command is killed (default 15)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args(typed)
    rows = table(given.commands.split(","), given.moments, given.seed, given.trials.split(","))
    print("| command | trial | tries | what was wrong |\n| --- | --- | --- | --- |", *rows, sep="\n")
    return int(any(row.faults for row in rows))


if __name__ == "__main__":
    sys.exit(main())
