"""``regagents apply``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regagents.cli.common import Commands

INTERPOLATIONS = ("linear", "nearest", "bspline", "lanczos")
"""As :data:`regagents.registration.apply.INTERPOLATORS`, which stands behind SimpleITK."""
ORDER = ("A transform maps points of the fixed image to points of the moving image, and so carries images and labels "
         "the other way. Several stand in the order in which a point of FIXED goes through them: the first one begins "
         "at FIXED, the last one ends at what is carried, as with antsApplyTransforms.")
EXAMPLE = ("example: atlas.nii.gz was registered to template.nii.gz (a.tfm), and the template to patient.nii.gz "
           "(b.h5); a point of the patient goes through b, then a, so the atlas' labels come to the patient by "
           "`regagents apply -t b.h5 a.tfm --labels atlas_labels.nii.gz --like patient.nii.gz -o labels.nii.gz`, and "
           "the patient's image to the atlas by `regagents apply -i a.tfm b.h5 --image patient.nii.gz --like "
           "atlas.nii.gz -o patient_on_atlas.nii.gz`.")


class Steps(argparse.Action):
    """Collects the files of -t and of -i in the order in which they are typed, each with whether it is of -i."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        inverted = self.const
        namespace.steps = [*(namespace.steps or []), *((path, inverted) for path in values)]


def add(commands: Commands) -> None:
    command = commands.add_parser("apply", help="carry an image, labels or points by transforms",
                                  description="Carry an image, labels or points by transforms or their inverses. "
                                  + ORDER, epilog=EXAMPLE)
    command.add_argument("-t", "--transform", metavar="FILE", dest="steps", nargs="+", action=Steps, const=False,
                         help=".tfm, .txt, .mat or .h5 of ITK, or a displacement field in mm (.nii.gz, .mha, .nrrd)")
    command.add_argument("-i", "--inverse", metavar="FILE", dest="steps", nargs="+", action=Steps, const=True,
                         help="likewise; its inverse is taken")
    given = command.add_mutually_exclusive_group(required=True)
    given.add_argument("--image", metavar="FILE", help="of the moving side: an image, carried to FIXED's grid")
    given.add_argument("--labels", metavar="FILE", help="likewise, whole numbers: the nearest voxel's")
    given.add_argument("--points", metavar="FILE", help="points (CSV, .fcsv, .mrk.json; mm) of the fixed image, "
                       "carried to the moving one, as transforms map; written as CSV, LPS")
    command.add_argument("--points-of", choices=("fixed", "moving"), default="fixed", help="moving: the points are of "
                         "the moving image and carried to FIXED, as --image and --labels are, by the inverse")
    command.add_argument("--like", metavar="FIXED", help="image whose grid the result has")
    command.add_argument("-o", "--out", metavar="OUT", required=True, help="file for the result")
    command.add_argument("--interpolation", choices=INTERPOLATIONS, help="of an image (default linear)")
    command.add_argument("--fill", metavar="VALUE", type=float, help="of an image where it does not reach (default: "
                         "its least value)")
    command.add_argument("--spacing", metavar="MM", type=float, help="spacing of images whose file has none (PNG)")
    command.add_argument("--time", metavar="N", type=int, help="which volume of a 4D image or labels, from 0")
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    from regagents.registration.apply import Inverse

    _check(arguments)
    steps = [Inverse(path) if inverted else path for path, inverted in arguments.steps]
    names = [f"the inverse of {path}" if inverted else path for path, inverted in arguments.steps]
    print(f"points of {arguments.like or 'the fixed image'} go through {', then '.join(names)}")
    told = _points(arguments, steps) if arguments.points is not None else _image(arguments, steps)
    for line in told:
        print(line)
    print(f"written: {arguments.out}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise ValueError for arguments that do not go together, or that could not be written in the end."""
    if not arguments.steps:
        raise ValueError("apply: no transform is given; name one with -t, or with -i to take its inverse.")
    if arguments.points is None and arguments.like is None:
        raise ValueError("apply: --like is missing; name the image whose grid the result shall have.")
    if arguments.image is None and (arguments.fill is not None or arguments.interpolation is not None):
        raise ValueError("apply: --fill and --interpolation are for --image; labels are those of the nearest voxels, "
                         "0 where there are none.")
    if arguments.points is None and arguments.points_of != "fixed":
        raise ValueError("apply: --points-of is for --points; an image and labels are of the moving side.")
    suffixes = (".csv",) if arguments.points is not None else (".nii", ".nii.gz", ".mha", ".nrrd")
    if not arguments.out.lower().endswith(suffixes):
        raise ValueError(f"{arguments.out}: format is '{Path(arguments.out).suffix}'; it must be "
                         f"{' or '.join(suffixes)}.")
    if not Path(arguments.out).absolute().parent.is_dir():
        raise FileNotFoundError(f"{arguments.out}: folder {Path(arguments.out).parent} does not exist. Create it "
                                "first.")


def _image(arguments: argparse.Namespace, steps: Sequence[Any]) -> list[str]:
    """Writes the image or the labels on the fixed image's grid. Returns what is told of them."""
    from regagents.registration.apply import apply_transforms, grid_of
    from regenv.data.io.images import read_image, read_labels
    from regenv.data.io.writing import write_image

    like, spacing = grid_of(arguments.like, arguments.spacing), arguments.spacing
    image = None if arguments.image is None else read_image(arguments.image, spacing, time=arguments.time)
    labels = None if arguments.labels is None else read_labels(arguments.labels, spacing, time=arguments.time)
    found = apply_transforms(steps, like, image=image, labels=labels, fill=arguments.fill,
                             interpolation=arguments.interpolation or "linear")
    write_image(arguments.out, found.image.array, found.image.grid)
    given = arguments.image or arguments.labels
    if found.covered == 0:
        return [f"warning: nothing of {given} lies on {arguments.like}; check the transforms' order and direction (-i)"]
    return [f"{given} covers {found.covered:.1%} of {arguments.like}"]


def _points(arguments: argparse.Namespace, steps: Sequence[Any]) -> list[str]:
    """Writes the points. Returns what is told of them."""
    from regagents.registration.apply import grid_of, map_points, write_points
    from regenv.data.io.landmarks import read_landmarks

    like = None if arguments.like is None else grid_of(arguments.like, arguments.spacing)
    points = read_landmarks(arguments.points, like)
    found, astray = map_points(steps, points, arguments.points_of)
    write_points(arguments.out, found)
    way = ("fixed", "moving") if arguments.points_of == "fixed" else ("moving", "fixed")
    told = [f"{len(points)} points of the {way[0]} image, carried to the {way[1]} one"]
    return told if not astray.any() else [*told, f"warning: {int(astray.sum())} of them (the first in row "
                                          f"{int(astray.argmax()) + 1}) are where no point of a displacement field's "
                                          "grid is mapped to; they are carried as if it went on as at its border"]
