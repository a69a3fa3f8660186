"""The cases of capture_range.py, pairs of real heads, and what is measured of the poses that a method ends with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from regagents.classical import MattesMI, Refinement, downsampled, evaluate_metric
from regagents.registration.pipeline import centered, moved_poses
from regenv.data.banks import downloads as datasets
from regenv.data.banks.heads import scans
from regenv.data.io.images import Image, ImageError, read_image
from regenv.data.io.resampling import foreground_center, to_sitk
from regenv.grid import Grid

NEAR_MM = 10.0           # an end this near to the common pose counts as found
GOLD_MM = 4.0            # at the corners of RIRE; mutual information's own optimum lies 1.4 to 3.1 mm from the gold
LATTICE_MM = 60.0        # landmarks: 3 x 3 x 3 points, this far apart, about the fixed foreground's centre


@dataclass(eq=False)
class Case:
    """Two images to register, and what is known of their pose.

    Attributes:
        gold: (8, 6) corners, fixed world then moving world, mm, if there is a gold standard.
        asked: run only where ``--cases`` names it.
    """

    name: str
    fixed: Image
    moving: Image
    gold: np.ndarray | None = None
    asked: bool = False

    @cached_property
    def center(self) -> np.ndarray:
        """The fixed foreground's centre, (3,) mm."""
        return foreground_center(self.fixed)

    @cached_property
    def sitk_images(self) -> tuple[sitk.Image, sitk.Image]:
        """Both as SimpleITK's images."""
        return to_sitk(self.fixed), to_sitk(self.moving)

    @cached_property
    def for_search(self) -> tuple[sitk.Image, sitk.Image]:
        """Both at the resolution of the classical search, so that only the search itself is timed."""
        fixed, moving = (downsampled(image, MattesMI().voxels) for image in self.sitk_images)
        return fixed, moving

    @cached_property
    def for_refinement(self) -> tuple[sitk.Image, sitk.Image]:
        """Both at the resolution of the refinement."""
        fixed, moving = (downsampled(image, Refinement().voxels) for image in self.sitk_images)
        return fixed, moving

    @cached_property
    def for_choice(self) -> tuple[Image, Image]:
        """Both at the resolution at which candidates are compared by mutual information."""
        fixed, moving = (Image(sitk.GetArrayFromImage(image), Grid.from_sitk(image), self.name)
                         for image in self.for_search)
        return fixed, moving

    @cached_property
    def digest(self) -> str:
        """Of both images' voxels and grids."""
        both = hashlib.sha256()
        for image in (self.fixed, self.moving):
            both.update(np.ascontiguousarray(image.array).data)
            both.update(repr(image.grid).encode())
        return both.hexdigest()[:12]

    @cached_property
    def landmarks(self) -> np.ndarray:
        """(27, 3) points of the fixed world, mm."""
        ticks = [[-LATTICE_MM, 0.0, LATTICE_MM]] * 3
        return self.center + np.stack(np.meshgrid(*ticks, indexing="ij"), -1).reshape(-1, 3)

    def starts(self, mm: float, degrees: float, count: int, seed: int) -> np.ndarray:
        """(count, 4, 4) pull-backs, uniform per axis about the pose with both foregrounds' centres on each other."""
        width = np.array([mm] * 3 + [degrees] * 3)
        moves = np.random.default_rng(seed).uniform(-width, width, (count, 6))
        return moved_poses(centered(self.fixed, self.moving), self.center, moves)

    @cached_property
    def reference(self) -> np.ndarray:
        """The gold pose; else the best of searches and refinements from the centred and from the stored pose."""
        if self.gold is not None:
            return fitted(self.gold[:, :3], self.gold[:, 3:])
        found = []
        for start in (np.eye(4), centered(self.fixed, self.moving)):
            searched = MattesMI().register(*self.for_search, start, self.center).pull_back
            found += [Refinement().register(*self.for_refinement, pose).pull_back for pose in (start, searched)]
        return min(found, key=lambda pose: evaluate_metric(*self.for_search, pose))


def built_in_cases() -> Iterator[Case]:
    """Real heads that anyone can fetch. Colin27 and CSI3 were never in training."""
    _, colin_brain = scans("colin27")
    mni = read_image(datasets.mni152()["t1"])
    head = read_image(datasets.get("colin27")["colin27"])
    mask = sitk.GetArrayFromImage(colin_brain) > 0
    brain = replace(head, array=np.where(mask, head.array, 0).astype(np.float32))
    person = read_image(datasets.get("bold5000")["csi3"])
    yield Case("MNI152 ← Colin27", mni, head)
    yield Case("MNI152 ← Colin27, brain only", mni, brain)
    yield Case("MNI152 ← CSI3", mni, person)
    yield Case("Colin27 ← CSI3", head, person)
    yield Case("Colin27 ← MNI 2009c T2", head, read_image(datasets.get("mni2009c")["t2"]), asked=True)


def rire_case(folder: Path) -> Case:
    """RIRE patient 001, CT to MR T1, with the eight published corners."""
    path = folder / "gold_ct_to_mr.csv"
    if not path.is_file():
        raise ImageError(f"{path}: is not a file; --rire needs a folder with ct.nii.gz, mr_t1.nii.gz and this file.")
    gold = np.genfromtxt(path, delimiter=",", skip_header=2)
    if gold.shape != (8, 6) or not np.isfinite(gold).all():
        raise ImageError(f"{path}: holds an array of {gold.shape}; 8 corners by 6 numbers (CT, then MR) are needed.")
    return Case("RIRE 001: CT ← MR T1", read_image(folder / "ct.nii.gz"), read_image(folder / "mr_t1.nii.gz"), gold)


# --------------------------------------------------------------------------------------------------------- measures

def moved(pull_backs: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 3) under each pose (K, 4, 4): (K, N, 3)."""
    return np.einsum("kij,nj->kni", pull_backs[:, :3, :3], points) + pull_backs[:, None, :3, 3]


def gaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean distance of corresponding points (..., N, 3): (...)."""
    return np.linalg.norm(a - b, axis=-1).mean(-1)


def common_points(points: np.ndarray) -> np.ndarray:
    """Where most ends put the landmarks, (K, N, 3) to (N, 3): mean over the end with most others within 10 mm and
    over those."""
    between = np.stack([gaps(points, one) for one in points])
    near = between <= NEAR_MM
    order = np.lexsort((between.mean(1), -near.sum(1)))
    return points[near[order[0]]].mean(0)


def fitted(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The rigid map (4, 4) of points a (N, 3) to b (N, 3), least squares (Kabsch 1976)."""
    u, _, vt = np.linalg.svd((a - a.mean(0)).T @ (b - b.mean(0)))
    sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    pull_back = np.eye(4)
    pull_back[:3, :3] = (u @ sign @ vt).T
    pull_back[:3, 3] = b.mean(0) - pull_back[:3, :3] @ a.mean(0)
    return pull_back


def measure(case: Case, ends: np.ndarray, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    points, reference = moved(ends, case.landmarks), moved(case.reference[None], case.landmarks)[0]
    common = common_points(points)
    spread = gaps(points, common)
    row = {"starts": len(ends), "within_10mm": float(np.mean(spread <= NEAR_MM)),
           "median_spread_mm": float(np.median(spread)), "p90_spread_mm": float(np.percentile(spread, 90)),
           "common_to_reference_mm": float(gaps(common, reference)),
           "within_10mm_of_reference": float(np.mean(gaps(points, reference) <= NEAR_MM)), "seconds": seconds}
    if case.gold is not None:
        error = gaps(moved(ends, case.gold[:, :3]), case.gold[:, 3:])
        row |= {"gold_within_4mm": float(np.mean(error <= GOLD_MM)), "gold_median_mm": float(np.median(error))}
    return row
