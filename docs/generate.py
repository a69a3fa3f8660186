"""Pages that follow from the code, made while the site is built: one an environment id, one an agent.

A hook of MkDocs (``hooks:`` of mkdocs.yml). Every id's page comes from the catalogue, with an animation of the shipped
agent that plays it, of the expert or of random actions; every agent's page comes from its weights' card.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from PIL import Image

from regagents.agents import ALGORITHMS, load, shipped
from regagents.common.player import player_of
from regagents.evaluation.pairs import HELD_OUT
from regagents.evaluation.suites import page as standings
from regagents.evaluation.suites import read_board, suites
from regagents.training.recording import best_by_expert, chosen_by
from regenv.describe import page, sections
from regenv.registry import CATALOGUE, build

BOARD = Path(__file__).parents[1] / "benchmarks" / "results" / "leaderboard.json"
FRAMES, MILLISECONDS = 12, 350      # of an animation, and of each of its frames
PLAYERS = {"RegRigid2D-v0": "rigid2d", "RegDenseDigits-v0": "digits-spac", "RegSDM2D-v0": "organ2d",
           "RegKeypoint3D-v0": "lung3d-l2o"}
"""Who plays an id's animation: shipped weights that need no download; of other ids the expert, or random actions."""
SMALL = {"RegDense3D-v0": {"size": 48}, "RegKeypoint3D-v0": {}, "RegRigid3D-v0": {"size": 48, "spacing": 4.6},
         "RegRigid3DContinuous-v0": {"size": 48, "spacing": 4.6}, "RegSimilarity3D-v0": {"size": 48},
         "RegRigid3DGeometric-v0": {"size": 48, "spacing": 4.6}}
"""Arguments that make an id's animation quicker to play."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages into the navigation, below their index."""
    pages = {"environments": list(CATALOGUE), "agents": [path.stem for path, _ in shipped()]}
    assert config.nav is not None
    for entry in config.nav:
        for title, place in entry.items():
            folder = str(place).removesuffix("/index.md")
            if folder in pages:
                entry[title] = [place, *({name: f"{folder}/{name}.md"} for name in pages[folder])]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and pictures."""
    for env_id in CATALOGUE:
        data, who = animation(env_id)
        _add(files, config, f"environments/{env_id}.webp", data)
        text = page(env_id).split("\n", 2)
        _add(files, config, f"environments/{env_id}.md",
             f"{text[0]}\n\n![One episode, played by {who}]({env_id}.webp)\n\n*Played by {who}.*\n{text[2]}\n"
             f"{_scores(env_id)}")
    _add(files, config, "environments/index.md", _environments())
    _add(files, config, "report.png", (BOARD.parent / "report.png").read_bytes())
    cards = shipped()
    for path, card in cards:
        _add(files, config, f"agents/{path.stem}.md", _agent(path.stem, card))
    _add(files, config, "agents/index.md", _agents([(path.stem, card) for path, card in cards]))
    _add(files, config, "leaderboard.md", _leaderboard())
    return files


def animation(env_id: str) -> tuple[bytes, str]:
    """An episode as a WebP animation, and who played it."""
    name = PLAYERS.get(env_id)
    if name is not None:
        agent = load(name)
        arguments, choose, who = agent.card["config"]["env_kwargs"], chosen_by(player_of(agent)), f"the agent {name}"
    else:
        arguments, choose, who = SMALL.get(env_id, {}), None, "random actions"
        task = build(env_id, **arguments)
        if task.expert is not None and isinstance(task.actions.space(), gym.spaces.Discrete):
            arguments, choose, who = {**arguments, "privileged": True}, best_by_expert, "the expert"
    env = gym.make(env_id, render_mode="rgb_array", **arguments)
    observation, info = env.reset(seed=1)
    env.action_space.seed(1)
    frames, memory, ended = [env.render()], None, False
    while not ended and len(frames) <= 8 * FRAMES:
        action, memory = (env.action_space.sample(), None) if choose is None else choose(observation, info, memory)
        observation, _, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
        frames.append(env.render())
    env.close()
    kept = [frames[place] for place in np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)]
    pictures = [Image.fromarray(frame) for frame in kept]
    out = io.BytesIO()
    pictures[0].save(out, "WEBP", save_all=True, append_images=pictures[1:], loop=0, quality=55, method=2,
                     duration=[*[MILLISECONDS] * (len(pictures) - 1), 4 * MILLISECONDS])
    return out.getvalue(), who


def _leaderboard() -> str:
    return ("# Leaderboard\n\nA suite is a named, frozen set of held-out pairs; `regagents benchmark` lists them. Its "
            "hash tells whether two numbers are of the same pairs. Agents are bold; seconds are of one thread of one "
            "machine. Intervals are of the mean over distinct pairs.\n\n"
            "```\nregagents benchmark spine --agent MINE.safetensors --leaderboard board.json\n```\n\n"
            "To have an entry added, send the file that the command wrote, with the weights.\n\n"
            f"{standings(read_board(BOARD))}")


def _scores(env_id: str) -> str:
    """What the leaderboard has of an id, or nothing."""
    rows = [each for each in read_board(BOARD)
            if env_id in (suites()[each.suite].env, HELD_OUT.get(suites()[each.suite].env, ("",))[0])]
    told = standings(rows).replace("## ", "### ")
    return f"\n## Scores\n\nFrom the [leaderboard](../leaderboard.md).\n\n{told}" if rows else ""


def _environments() -> str:
    rows = "\n".join(f"| [{env_id}]({env_id}.md) | {sections(env_id)['']} | {row.steps} |"
                     for env_id, row in CATALOGUE.items())
    return ("# Environments\n\nAn id is a row of `regenv.CATALOGUE`; every argument of its page can be given to "
            f"`gym.make` and `gym.make_vec`.\n\n| id | what it is | steps |\n|---|---|---|\n{rows}\n")


def _agents(cards: list[tuple[str, dict[str, Any]]]) -> str:
    rows = "\n".join(f"| [{name}]({name}.md) | {card['algorithm']} | [{card['env']}](../environments/{card['env']}.md) "
                     f"| {card.get('samples', 0):,} |" for name, card in cards)
    about = "\n".join(f"* **{name}** moves a {row.moves}, learns from: {row.learns_from}. "
                      f"{(row.algorithm.__doc__ or '').strip().splitlines()[0]}"
                      for name, row in ALGORITHMS.items())
    return (f"# Agents\n\n{about}\n\n## Shipped weights\n\n| weights | algorithm | plays | samples |\n"
            f"|---|---|---|---:|\n{rows}\n")


def _agent(name: str, card: dict[str, Any]) -> str:
    told = {"Algorithm": card["algorithm"], "Plays": f"[{card['env']}](../environments/{card['env']}.md)",
            "Samples": f"{card.get('samples', 0):,}",
            "Training": f"{card.get('seconds', 0):,} s on {card.get('machine')}",
            "Seed": card.get("seed"), "Begins with": card.get("init") or "random weights",
            "Licence": card.get("licence")}
    lines = "\n".join(f"* {key}: {value}" for key, value in told.items())
    commands = (f"regagents watch {card['env']} --agent {name} -o episode.html\n"
                f"regagents evaluate --env {card['env']} --agent {name} --pairs 32")
    return (f"# {name}\n\n{lines}\n\nThis command trained it:\n\n```\n{card.get('command')}\n```\n\n"
            f"Play it, or measure it on held-out pairs:\n\n```\n{commands}\n```\n\n"
            f"## Settings\n\n```json\n{json.dumps(card.get('config', {}), indent=2)}\n```\n")


def _add(files: Files, config: MkDocsConfig, path: str, content: str | bytes) -> None:
    files.append(File.generated(config, path, content=content))
