"""Coverage-guided fuzzing of every reader: an input that ends in anything but an image, or one clear error, is kept.

    pip install atheris
    python tests/robustness/fuzz.py c.nii.gz --seconds 60      # one kind of file; --list names all

Atheris mutates the small undamaged files of :mod:`tests.robustness.sound` where that reaches new lines of the readers.
What it finds is written to ``--found`` as ``crash-...``; such a file becomes a row of ``damage._FOUND_BEFORE``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 1 << 16       # bytes of an input
HANGS = 10              # seconds


def main(argv: Sequence[str] | None = None) -> int:
    import atheris

    sys.path.insert(0, str(ROOT))
    with atheris.instrument_imports(include=["regenv.data.io"]):
        from regenv.data.io.errors import ImageError
        from tests.robustness.sound import all_sound
        from tests.robustness.worker import _read
    kinds = {sound.name: sound for sound in all_sound()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(kinds))
    parser.add_argument("--list", action="store_true", help="print the kinds")
    parser.add_argument("--seconds", type=int, default=60, help="for the kind")
    parser.add_argument("--found", type=Path, default=Path("runs/fuzz"), help="folder for what goes wrong")
    arguments = parser.parse_args(argv)
    if arguments.list or len(arguments.kinds) != 1 or arguments.kinds[0] not in kinds:
        print("\n".join(kinds))
        return 0 if arguments.list else 2
    sound = kinds[arguments.kinds[0]]
    arguments.found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        place, seeds = Path(scratch) / "read", Path(scratch) / "seeds"
        place.mkdir()
        seeds.mkdir()
        for name, content in sound.files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        (seeds / "sound").write_bytes(sound.files[sound.victim])

        def one(content: bytes) -> None:
            (place / sound.victim).write_bytes(content)
            try:
                _read(sound, place / sound.main)
            except ImageError as error:
                assert len(str(error).splitlines()) == 1, error

        atheris.Setup([sys.argv[0], str(seeds), f"-max_total_time={arguments.seconds}", f"-max_len={LARGEST}",
                       f"-timeout={HANGS}", f"-artifact_prefix={arguments.found}/", "-print_final_stats=1"], one)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
