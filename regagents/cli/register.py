"""``regagents register``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regagents.cli.common import Commands, progress_bar

if TYPE_CHECKING:
    from regenv.data.io.images import Image

NOT_ALIGNED = 3
"""Exit status of ``--strict`` where the verdict is another than "aligned"."""
TRANSFORMS = ("rigid", "similarity", "affine")
MEMORY_GB = 2.0
GB = 10**9


def add(commands: Commands) -> None:
    command = commands.add_parser("register", help="register two images",
                                  description="Register MOVING to FIXED and tell whether that succeeded. Writes the "
                                  "transform, the warped image, metrics.json and report.html to OUT.")
    command.add_argument("fixed", metavar="FIXED", help="image file, or folder of a DICOM series")
    command.add_argument("moving", metavar="MOVING", help="likewise")
    command.add_argument("-o", "--out", metavar="OUT", required=True, help="folder for the results")
    add_options(command)
    command.add_argument("--masks", nargs=2, metavar=("FIXED", "MOVING"), help="what is to be aligned: mask images")
    command.add_argument("--landmarks", nargs=2, metavar=("FIXED", "MOVING"),
                         help="corresponding points (CSV, .fcsv): measure the TRE")
    command.add_argument("--labels", nargs=2, metavar=("FIXED", "MOVING"), help="label images: measure the Dice")
    command.set_defaults(command=run)


def add_options(command: argparse.ArgumentParser) -> None:
    """What applies to any pair of images: of ``register``, and of ``batch`` for all of its pairs."""
    command.add_argument("--agent", metavar="NAME|PATH", default="auto", help="agent or checkpoint (see `regagents "
                         "agents`); default auto")
    command.add_argument("--init", metavar="FILE|header|center", help="where the search begins: a transform, the "
                         "images as they lie, or their foregrounds' centres on each other (default: what fits best)")
    command.add_argument("--transform", choices=TRANSFORMS, default="rigid", help="what the refinement may change "
                         "(default rigid)")
    command.add_argument("--no-refine", action="store_true", help="keep the agent's own pose (and deformation)")
    command.add_argument("--deform", metavar="NAME|PATH", help="then deform: auto (what measured best on such pairs), "
                         "greedy (greedy:brain, :lung, :organ, :mind, :mse, :labels), demons, bspline, syn, adam, "
                         "convex, convexadam, or weights of a learned optimiser; writes transform.h5, too")
    command.add_argument("--memory", metavar="GB", type=float, default=MEMORY_GB, help="that the deformation may work "
                         f"with; images that need more are deformed on a coarser grid (default {MEMORY_GB:g})")
    command.add_argument("--fill", metavar="VALUE", type=float, help="of warped.nii.gz where MOVING does not reach "
                         "(default: MOVING's least value)")
    command.add_argument("--spacing", metavar="MM", type=float, help="spacing of images whose file has none (PNG)")
    command.add_argument("--time", metavar="N", type=int, help="which volume of FIXED and MOVING, from 0, where they "
                         "are 4D")
    command.add_argument("--strict", action="store_true", help=f"exit status {NOT_ALIGNED} unless the verdict is "
                         "aligned")


def run(arguments: argparse.Namespace) -> int:
    from regagents.registration.register import register
    from regenv.atomic import check_folder
    from regenv.data.io.images import read_labels, read_mask
    from regenv.data.io.resampling import on_image

    check_folder(arguments.out)
    fixed, moving = _images((arguments.fixed, arguments.moving), arguments.spacing, arguments.time)
    masks, labels = (_pair(read, given, arguments.spacing) for read, given in (
        (read_mask, arguments.masks), (read_labels, arguments.labels)))
    for mask, image in zip(masks or (), (fixed, moving), strict=False):
        on_image(mask, image)
    with progress_bar() as progress:
        result = register(fixed, moving, arguments.agent, refine=not arguments.no_refine, initial=arguments.init,
                           progress=progress, landmarks=arguments.landmarks, labels=labels,
                          deform=arguments.deform, masks=masks, fill=arguments.fill, transform=arguments.transform,
                          memory=round(arguments.memory * GB))
        result.save(arguments.out)
    for line in _told(result.metrics):
        print(line)
    print(f"written: {arguments.out}")
    print(f"report: {Path(arguments.out) / 'report.html'}")
    return NOT_ALIGNED if arguments.strict and result.metrics["verdict"]["state"] != "aligned" else 0


def _images(paths: Sequence[str], spacing: float | None, time: int | None) -> list[Image]:
    """The images of files, of which all but one may have a single volume where ``time`` chooses among several."""
    from regenv.data.io.images import ImageError, read_image

    images: list[Image] = []
    alone = 0
    for path in paths:
        try:
            images.append(read_image(path, spacing, time=time))
        except ImageError as error:
            alone += 1
            if time is None or alone == len(paths):
                raise
            try:
                images.append(read_image(path, spacing))
            except ImageError:
                raise error from None
    return images


def _pair(read: Callable[..., Image], paths: Sequence[str] | None, spacing: float | None) -> tuple[Image, Image] | None:
    """The images of two files, where they are given."""
    return None if paths is None else (read(paths[0], spacing), read(paths[1], spacing))


def _told(metrics: dict[str, Any]) -> list[str]:
    """What is printed of a registration, the verdict last."""
    similarity = ", ".join(f"{stage} {'none' if value is None else format(value, '.4f')}"
                           for stage, value in metrics["similarity"].items())
    lines = [f"agent {' + '.join(metrics['agent']) or 'none'}: "
             f"{sum(metrics['seconds'].values()):.1f} s", f"mutual information: {similarity}"]
    if "deformation" in metrics:
        by, folding = metrics["deformation"]["by"], metrics["deformation"]["folding"]
        kind = f" (auto: {metrics['deformation']['choice']['kind']})" if "choice" in metrics["deformation"] else ""
        lines.append(f"deformed by {by}{kind}: {folding:.3%} of the voxels fold")
    if "tre_mm" in metrics:
        lines.append(f"TRE: before {metrics['tre_mm']['before']:.2f} mm, after {metrics['tre_mm']['after']:.2f} mm")
    if "dice" in metrics:
        before, after = (_mean(metrics["dice"][when]) for when in ("before", "after"))
        lines.append(f"Dice, mean: before {before}, after {after}")
    verdict = metrics["verdict"]
    reasons = f": {'; '.join(verdict['reasons'])}" if verdict["reasons"] else ""
    return [*lines, *metrics["notes"], f"verdict: {verdict['state']} ({verdict['probability']:.2f}){reasons}"]


def _mean(scores: dict[str, float | None]) -> str:
    present = [score for score in scores.values() if score is not None]
    return f"{sum(present) / len(present):.3f}" if present else "none"
