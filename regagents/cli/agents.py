"""``regagents agents``."""

from __future__ import annotations

import argparse

from regagents.cli.common import Commands


def add(commands: Commands) -> None:
    command = commands.add_parser("agents", help="list agents and shipped weights")
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    from regagents.agents import ALGORITHMS, resolve, shipped
    from regagents.registration.pipeline import AGENTS, AUTO

    weights = shipped()
    print("agents")
    for name, chain in [*((f"auto ({ndim}D)", chain) for ndim, chain in AUTO.items()), *AGENTS.items()]:
        here = all(resolve(stage).is_file() for stage in chain.stages)
        ways = [*([" + ".join(chain.stages)] if chain.stages else ["the start"]), *chain.rivals]
        print(f"  {name:24}{', '.join(ways)}{', from all directions' if chain.turned else ''}"
              f"{'' if here else '; weights missing'}")
    print("weights")
    for path, card in weights:
        moves = ALGORITHMS[card["algorithm"]].moves
        print(f"  {path.stem:24}{card.get('env')}, moves a {moves}, {card.get('samples', 0):,} samples, "
              f"{card.get('seconds', 0):,} s")
    return 0
