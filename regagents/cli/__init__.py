"""The command ``regagents``: register images, apply what was found, evaluate and train agents. One module a command.

A command's ``run`` imports what it needs; its parser needs nothing, so help is there at once, and Ctrl-C ends even an
import in one line.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from regagents.cli import (
    agents,
    apply,
    batch,
    benchmark,
    compare,
    evaluate,
    info,
    invert,
    record,
    register,
    train,
    watch,
)
from regagents.cli.common import Parser, Version


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status, see :func:`regenv.shell.run`."""
    typed = list(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_args(typed)
    arguments.typed = "regagents " + shlex.join(typed)
    try:
        from regenv import shell  # and with it gymnasium, where the ids are registered
    except KeyboardInterrupt:
        print("regagents: interrupted.", file=sys.stderr)
        return 130
    return shell.run("regagents", lambda: arguments.command(arguments), arguments.debug)


def parser() -> Parser:
    """The command's arguments; ``command`` among them is the ``run`` of the chosen one."""
    parser = Parser(prog="regagents", description="Register images, apply what was found, evaluate and train agents.")
    parser.add_argument("--version", action=Version, nargs=0, help="show the version and exit")
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (register, batch, apply, invert, info, evaluate, benchmark, compare, record, train, watch, agents):
        module.add(commands)
    return parser
