"""What training tells on the way: progress.csv, and TensorBoard's events where it is installed."""

from __future__ import annotations

import csv
import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat, filter_excluded_keys

from regenv.atomic import atomic
from regenv.stored import StoredError, read_bytes

STEP = "time/total_timesteps"
MOST_BYTES = 1 << 28
HAS_TENSORBOARD = find_spec("tensorboard") is not None


def progress_logger(folder: Path, start: int) -> Logger:
    """The logger of a training run. Args: start: the step that it begins at; rows of the log beyond it are dropped."""
    formats: list[KVWriter] = [ProgressCSV(folder / "progress.csv", start)]
    if HAS_TENSORBOARD:
        formats.append(TensorBoardOutputFormat(str(folder)))
    return Logger(str(folder), formats)


class ProgressCSV(KVWriter):
    """SB3's progress.csv, which a resumed run continues: rows up to its first step are kept.

    Raises ValueError where the file of a run that is resumed is damaged.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path = path
        self.keys: list[str] = []
        self.rows: list[list[str]] = []
        if start and path.is_file():
            self.keys, self.rows = _kept(path, start)
        self._write_whole()

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        values = filter_excluded_keys(key_values, key_excluded, "csv")
        new = [key for key in values if key not in self.keys]
        self.keys += new
        self.rows.append([str(values.get(key, "")) for key in self.keys])
        if new:
            self._write_whole()
        else:
            with self.path.open("a", newline="") as file:
                file.write(_line(self.rows[-1]))

    def close(self) -> None:
        """Every row is in the file already."""

    def _write_whole(self) -> None:
        rows = [row + [""] * (len(self.keys) - len(row)) for row in self.rows]
        with atomic(self.path) as temporary:
            temporary.write_text("".join(map(_line, [self.keys, *rows])) if self.keys else "")


def _line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _kept(path: Path, start: int) -> tuple[list[str], list[list[str]]]:
    """Columns of a log, and its rows up to a step. A last line without its end was cut short, and is dropped."""
    where = f"{path}: "
    try:
        text = read_bytes(path, MOST_BYTES).decode()
        lines = list(csv.reader(io.StringIO(text[:text.rfind("\n") + 1]), strict=True))
        where = f"{path}: line 1: "
        keys, rows = (lines[0], lines[1:]) if lines else ([], [])
        if keys and STEP not in keys:
            raise ValueError(f"there is no column {STEP}")
        kept = []
        for number, row in enumerate(rows, 2):
            where = f"{path}: line {number}: "
            if len(row) != len(keys):
                raise ValueError(f"{len(row)} cells, but there are {len(keys)} columns")
            if int(row[keys.index(STEP)]) <= start:
                kept.append(row)
    except StoredError:
        raise
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{where}{error}; the log cannot be continued. Delete the file, or that line.") from None
    return keys, kept
