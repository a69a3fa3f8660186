"""``regagents invert``."""

from __future__ import annotations

import argparse

from regagents.cli.common import Commands


def add(commands: Commands) -> None:
    command = commands.add_parser("invert", help="the inverse of a transform",
                                  description="Write the inverse of TRANSFORM: of a linear one exactly, of a "
                                  "displacement field by iteration, of a composite in the reversed order. The error of "
                                  "a round trip is printed, and written to OUT's .json.")
    command.add_argument("transform", metavar="TRANSFORM", help=".tfm, .txt, .mat or .h5 of ITK, or a displacement "
                         "field in mm (.nii.gz, .mha, .nrrd)")
    command.add_argument("-o", "--out", metavar="OUT", required=True, help=".tfm or .h5; also .nii.gz, .mha or .nrrd "
                         "for a displacement field")
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    from regagents.registration.apply import invert_file

    inverted = invert_file(arguments.transform, arguments.out)
    error = inverted.round_trip_mm
    print(f"inverse: {inverted.kind}")
    print(f"round trip: median {error['median']:.2g} mm, 99 % within {error['p99']:.2g} mm, all within "
          f"{error['max']:.2g} mm")
    if inverted.folded > 0:
        print(f"warning: {inverted.folded:.3%} of the field's voxels fold; there it has no inverse, and what is "
              "written leads to one of several points")
    print(f"written: {arguments.out}")
    return 0
