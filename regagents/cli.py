"""The command ``regagents``: register images, evaluate and train agents."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from tqdm import tqdm

from regagents.a3c.workers import WorkerError
from regagents.agents import ALGORITHMS, resolve, shipped
from regagents.common.cards import check_environment
from regagents.common.jobs import ENGINES, JobError
from regagents.evaluation.compare import compare
from regagents.evaluation.evaluate import chosen_baselines, evaluate
from regagents.evaluation.pairs import HELD_OUT
from regagents.registration.pipeline import AGENTS, DEFAULT
from regagents.registration.register import register
from regagents.training.progress import HAS_TENSORBOARD
from regagents.training.recording import record
from regagents.training.train import train
from regenv import shell
from regenv.atomic import check_folder
from regenv.data.banks.downloads import DatasetError
from regenv.data.io.images import read_image, read_mask
from regenv.data.io.resampling import on_image
from regenv.registry import CATALOGUE
from regenv.stored import parse_json

KNOWN = (DatasetError, JobError, WorkerError)

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status, see :func:`regenv.shell.run`."""
    typed = list(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_args(typed)
    arguments.typed = "regagents " + shlex.join(typed)
    return shell.run("regagents", lambda: arguments.command(arguments), getattr(arguments, "debug", False), KNOWN)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="regagents", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_register, _add_evaluate, _add_compare, _add_record, _add_train, _add_agents):
        add(commands)
    shell.add_debug(parser)
    return parser


def _add_register(commands: Commands) -> None:
    command = commands.add_parser("register", help="register two images",
                                  description="Register MOVING to FIXED with an agent, then refine. Writes "
                                  "transform.tfm, warped.nii.gz, overlay.png, trace.csv and metrics.json to OUT.")
    command.add_argument("fixed", metavar="FIXED", help="image file, or folder of a DICOM series")
    command.add_argument("moving", metavar="MOVING", help="likewise")
    command.add_argument("-o", "--out", metavar="OUT", required=True, help="folder for the results")
    command.add_argument("--agent", metavar="NAME|PATH", help="agent or checkpoint (see `regagents agents`); "
                         "default: by dimension")
    command.add_argument("--no-refine", action="store_true", help="keep the agent's own pose (and deformation)")
    command.add_argument("--deform", metavar="NAME|PATH", help="then deform: adam, convex, convexadam, or weights of a "
                         "learned optimiser; writes transform.h5, too")
    command.add_argument("--masks", nargs=2, metavar=("FIXED", "MOVING"), help="the organ that is to be deformed")
    command.add_argument("--fill", metavar="VALUE", type=float, help="of warped.nii.gz where MOVING does not reach "
                         "(default: MOVING's least value)")
    command.add_argument("--seed", type=int, default=0, help="of the scattered starts (default 0)")
    command.add_argument("--spacing", metavar="MM", type=float, help="spacing of images whose file has none (PNG)")
    command.add_argument("--landmarks", nargs=2, metavar=("FIXED", "MOVING"),
                         help="corresponding points (CSV, .fcsv): measure the TRE")
    command.add_argument("--labels", nargs=2, metavar=("FIXED", "MOVING"), help="label images: measure the Dice")
    command.set_defaults(command=_register)


def _add_evaluate(commands: Commands) -> None:
    command = commands.add_parser("evaluate", help="agents and classical baselines on held-out pairs: one table")
    command.add_argument("--env", metavar="ID", required=True, help="environment id, or: whole-head, spine")
    command.add_argument("--agent", metavar="NAME|PATH", nargs="+", default=[], help="agents or checkpoints")
    command.add_argument("--pairs", type=int, default=32, help="how many (default 32)")
    command.add_argument("--seed", type=int, default=0, help="of the first pair (default 0)")
    command.add_argument("--env-kwargs", metavar="JSON", default="{}", help="arguments of the environment")
    command.add_argument("--refine", action="store_true", help="a second row for every agent, refined")
    command.add_argument("--baselines", metavar="LIST",
                         help="for poses of initial, mi, mi-multistart (the slowest agent's time), sift, elastix "
                         "(default initial,mi); for displacements of initial, demons, bspline, adam, convexadam, syn "
                         "(default all that are installed)")
    command.add_argument("--json", metavar="FILE", help="write the report, every pair's error too")
    command.add_argument("--csv", metavar="FILE", help="write the table")
    command.add_argument("--ledger", metavar="FILE", help="keep finished parts here; go on from them")
    _engine(command)
    command.set_defaults(command=_evaluate)


def _add_compare(commands: Commands) -> None:
    command = commands.add_parser("compare", help="agents trained on one budget, on the same held-out pairs",
                                  description="Writes OUT.md (the table), OUT.png (learning curves) and OUT.json; "
                                  "keeps finished runs in OUT.jsonl and goes on from them.")
    command.add_argument("--env", metavar="ID", required=True, help="environment id")
    command.add_argument("--agents", metavar="LIST", required=True, help="such as ppo,dqn,dsl")
    command.add_argument("--budget", metavar="STEPS", type=int, required=True, help="environment steps of each agent")
    command.add_argument("--pairs", type=int, default=64, help="held out (default 64)")
    command.add_argument("--seeds", type=int, default=3, help="runs of each agent (default 3)")
    command.add_argument("--seed", type=int, default=900_000, help="of the first pair (default 900000)")
    command.add_argument("--env-kwargs", metavar="JSON", default="{}", help="arguments of the environment")
    command.add_argument("--held-out", metavar="JSON", default="{}", help="those that differ for the held-out pairs")
    command.add_argument("--baselines", metavar="LIST", help="default: as those of evaluate")
    command.add_argument("--out", metavar="OUT", help="default runs/compare-ID")
    _engine(command)
    command.set_defaults(command=_compare)


def _add_record(commands: Commands) -> None:
    command = commands.add_parser("record", help="a Minari dataset of the expert's or an agent's episodes")
    command.add_argument("dataset", metavar="DATASET", help="its id, such as regenv/rigid2d/expert-v0")
    command.add_argument("--env", metavar="ID", help="environment id (default: the agent's)")
    command.add_argument("--agent", metavar="NAME|PATH", default="expert", help="weights (default: expert)")
    command.add_argument("--episodes", type=int, default=100, help="default 100")
    command.add_argument("--seed", type=int, default=0, help="of the first episode (default 0)")
    command.add_argument("--env-kwargs", metavar="JSON", default="{}", help="arguments of the environment")
    command.set_defaults(command=_record)


def _add_train(commands: Commands) -> None:
    command = commands.add_parser("train", help="train a preset")
    command.add_argument("preset", metavar="PRESET", help="see regagents/training/presets.py")
    command.add_argument("--out", metavar="DIR", help="folder for weights and logs (default runs/PRESET)")
    command.add_argument("--steps", type=int, help="samples in all (default: the preset's)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--init", metavar="CHECKPOINT", help="take over the convolutions of another agent")
    command.add_argument("--resume", action="store_true", help="go on from the last state in DIR")
    command.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    command.set_defaults(command=_train)


def _add_agents(commands: Commands) -> None:
    command = commands.add_parser("agents", help="list agents and shipped weights")
    command.set_defaults(command=_agents)


def _engine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--engine", choices=ENGINES, default="serial", help="where it runs (default serial)")
    command.add_argument("--workers", type=int, metavar="N", help="how many parts at once (default: every core)")


def _register(arguments: argparse.Namespace) -> int:
    check_folder(arguments.out)
    fixed, moving = (read_image(path, arguments.spacing) for path in (arguments.fixed, arguments.moving))
    masks = None if arguments.masks is None else (read_mask(arguments.masks[0]), read_mask(arguments.masks[1]))
    for mask, image in zip(masks or (), (fixed, moving), strict=False):
        on_image(mask, image)
    with _bar() as progress:
        result = register(fixed, moving, arguments.agent, refine=not arguments.no_refine, seed=arguments.seed,
                          progress=progress, landmarks=arguments.landmarks, labels=arguments.labels,
                          deform=arguments.deform, masks=masks, fill=arguments.fill)
        result.save(arguments.out)
    metrics = result.metrics
    print(f"agent {' + '.join(metrics['agent']) or 'none'}, {metrics['starts']} start(s): "
          f"{sum(metrics['seconds'].values()):.1f} s")
    told = ", ".join(f"{stage} {'none' if value is None else format(value, '.4f')}"
                     for stage, value in metrics["similarity"].items())
    print(f"mutual information: {told}")
    if "deformation" in metrics:
        print(f"deformed by {metrics['deformation']['by']}: {metrics['deformation']['folding']:.3%} of the voxels fold")
    if "tre_mm" in metrics:
        print(f"TRE: before {metrics['tre_mm']['before']:.2f} mm, after {metrics['tre_mm']['after']:.2f} mm")
    if "dice" in metrics:
        print(f"Dice, mean: before {_mean(metrics['dice']['before'])}, after {_mean(metrics['dice']['after'])}")
    for note in metrics["notes"]:
        print(note)
    print(f"written: {arguments.out}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    for path in (arguments.json, arguments.csv):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"{path}: folder {Path(path).parent} does not exist. Create it first.")
    env_kwargs = _environment(HELD_OUT.get(arguments.env, (arguments.env,))[0], arguments.env_kwargs)
    baselines = chosen_baselines(arguments.env, env_kwargs, _names(arguments.baselines))
    with _bar() as progress:
        report = evaluate(arguments.env, [*arguments.agent, *baselines], arguments.pairs, arguments.seed,
                          env_kwargs, arguments.refine, progress=progress, engine=arguments.engine,
                          workers=arguments.workers, ledger=arguments.ledger)
    if arguments.json is not None:
        report.save_json(arguments.json)
    if arguments.csv is not None:
        report.save_csv(arguments.csv)
    print(report.table())
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    importlib.import_module("matplotlib")  # which draws the curves at the end
    env_kwargs, held_out = (_environment(arguments.env, *given) for given in (
        (arguments.env_kwargs, "--env-kwargs"), (arguments.held_out, "--held-out")))
    out = Path(arguments.out or Path("runs") / f"compare-{arguments.env}")
    with _bar() as progress:
        found = compare(arguments.env, arguments.agents.split(","), arguments.budget, arguments.pairs, arguments.seeds,
                        arguments.seed, env_kwargs, held_out, _names(arguments.baselines), out, arguments.engine,
                        arguments.workers, progress)
    found.save(out, arguments.typed)
    print(found.table(), end="")
    return 0


def _record(arguments: argparse.Namespace) -> int:
    with _bar() as progress:
        dataset = record(arguments.dataset, arguments.env, arguments.agent, arguments.episodes, arguments.seed,
                         _environment(arguments.env, arguments.env_kwargs), progress)
    print(f"{dataset.spec.dataset_id}: {dataset.total_episodes} episodes, {dataset.total_steps} steps, "
          f"{dataset.storage.data_path}")
    return 0


def _train(arguments: argparse.Namespace) -> int:
    if arguments.steps is not None and arguments.steps < 1:
        raise ValueError(f"train: steps is {arguments.steps}; it must be at least 1.")
    path = train(arguments.preset, arguments.out or Path("runs") / arguments.preset, arguments.steps, arguments.seed,
                 arguments.device, arguments.init, arguments.resume, command=arguments.typed,
                 progress_bar=sys.stderr.isatty())
    print(path)
    if not HAS_TENSORBOARD:
        print('regagents: tensorboard is not installed: progress.csv alone was written; pip install "regenv[viz]".',
              file=sys.stderr)
    return 0


def _agents(arguments: argparse.Namespace) -> int:
    weights = shipped()
    print("agents")
    for name, chain in AGENTS.items():
        here = all(resolve(stage).is_file() for stage in chain.stages)
        default = ", ".join(f"default in {ndim}D" for ndim, chosen in DEFAULT.items() if chosen == name)
        print(f"  {name:24}{' + '.join(chain.stages)}, {chain.starts} start(s)"
              f"{', ' + default if default else ''}{'' if here else '; weights missing'}")
    print("weights")
    for path, card in weights:
        moves = ALGORITHMS[card["algorithm"]].moves
        print(f"  {path.stem:24}{card.get('env')}, moves a {moves}, {card.get('samples', 0):,} samples, "
              f"{card.get('seconds', 0):,} s")
    return 0


def _names(listed: str | None) -> list[str] | None:
    """Names of a list with commas; None where none was given."""
    return None if listed is None else [name for name in listed.split(",") if name]


def _environment(env_id: str | None, text: str, option: str = "--env-kwargs") -> dict[str, Any]:
    """Arguments of an environment from JSON. Raises ValueError for those that the id's builder does not take."""
    value = parse_json(text, option)
    if not isinstance(value, dict):
        raise ValueError(f"{option} is {text:.80}; it must be a JSON object, such as {{\"size\": 32}}.")
    if env_id in CATALOGUE:
        check_environment(env_id, value, option, files=True)
    return value


def _mean(scores: dict[str, float | None]) -> str:
    present = [score for score in scores.values() if score is not None]
    return f"{sum(present) / len(present):.3f}" if present else "none"


@contextmanager
def _bar() -> Iterator[Callable[[str, float], None]]:
    """A progress bar on a terminal, nothing elsewhere. It is removed at the end, so an error is on its own line."""
    layout = "{desc:24.24}|{bar}| {percentage:3.0f} % {elapsed}"
    with tqdm(total=1.0, leave=False, disable=None, bar_format=layout) as bar:
        def progress(name: str, share: float) -> None:
            bar.set_description_str(name, refresh=False)
            bar.update(max(0.0, share - bar.n))

        yield progress


if __name__ == "__main__":
    sys.exit(main())
