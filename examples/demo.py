"""Register two real heads of different people: Colin27, moved by a random rigid motion, to MNI152.

    make demo

The motion changes only the header of Colin27, so it is known exactly and no voxel is resampled. Colin27 comes aligned
with MNI space, so the motion is the truth; two heads differ, so it holds to a few millimetres.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from tqdm import tqdm

from regagents.common.checkpoints import CheckpointError
from regagents.registration.register import register
from regenv.data.banks import downloads as datasets
from regenv.data.io.images import Image, ImageError, read_image
from regenv.data.io.resampling import foreground_center
from regenv.ops.affine import about
from regenv.transforms.rigid import Rigid

LATTICE_MM = 60.0


def moved(image: Image, motion: np.ndarray) -> Image:
    """The image moved in the world by a rigid motion (4, 4), mm, by its header alone."""
    direction = motion[:3, :3] @ np.reshape(image.grid.direction, (3, 3))
    origin = motion[:3, :3] @ np.array(image.grid.origin) + motion[:3, 3]
    return replace(image, grid=replace(image.grid, origin=tuple(origin.tolist()),
                                       direction=tuple(direction.ravel().tolist())))


def random_motion(center: np.ndarray, mm: float, degrees: float, seed: int) -> np.ndarray:
    """A rigid motion (4, 4) about ``center``, uniform within ±mm and ±degrees on every axis."""
    width = np.array([mm] * 3 + [degrees] * 3)
    move = np.random.default_rng(seed).uniform(-width, width)
    return about(center, Rigid(3).matrix(torch.from_numpy(move[None])))[0].numpy()


def landmarks(center: np.ndarray) -> np.ndarray:
    """(27, 3) points within ±60 mm of ``center`` on every axis."""
    return center + np.stack(np.meshgrid(*[[-LATTICE_MM, 0, LATTICE_MM]] * 3), -1).reshape(-1, 3)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    parser.add_argument("--agent", default="auto", help="name of an agent, or a checkpoint's path (default auto)")
    parser.add_argument("--mm", type=float, default=30.0, help="of the random motion, per axis")
    parser.add_argument("--degrees", type=float, default=30.0, help="of the random motion, per axis")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    try:
        demo(arguments)
    except (datasets.DatasetError, ImageError, CheckpointError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    return 0


def demo(arguments: argparse.Namespace) -> None:
    began = perf_counter()
    print("Images: MNI152 (from nilearn) and Colin27 (fetched once, then kept).")
    fixed = read_image(datasets.mni152()["t1"])
    colin = read_image(datasets.get("colin27")["colin27"])
    motion = random_motion(foreground_center(colin), arguments.mm, arguments.degrees, arguments.seed)
    points = landmarks(foreground_center(fixed))
    truth = points @ motion[:3, :3].T + motion[:3, 3]

    with tqdm(total=100, bar_format="{desc:<16} {percentage:3.0f}% |{bar:40}| {elapsed}") as bar:
        def progress(stage: str, share: float) -> None:
            bar.set_description_str(stage)
            bar.update(round(100 * share) - bar.n)

        result = register(fixed, moved(colin, motion), agent=arguments.agent, progress=progress,
                          landmarks=(points, truth))
    out = result.save(arguments.out)

    error = result.metrics["tre_mm"]
    print(f"TRE {error['before']:.1f} mm before, {error['after']:.1f} mm after. The truth is Colin27's own alignment "
          "with MNI space; it is another head, so the truth holds to 2 or 3 mm.")
    print(f"{perf_counter() - began:.0f} s. {out}/: {', '.join(sorted(path.name for path in out.iterdir()))}")


if __name__ == "__main__":
    sys.exit(main())
