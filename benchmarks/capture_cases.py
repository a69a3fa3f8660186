"""The cases of capture_range.py, pairs of real heads, and what is measured of the poses that a method ends with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from regagents.classical import MattesMI, Refinement, downsampled, evaluate_metric
from regagents.classical.common import shift
from regagents.registration.pipeline import centered
from regenv.data.banks import brains, downloads
from regenv.data.io.images import Image, ImageError, read_image
from regenv.data.io.resampling import foreground_center, framed, to_sitk
from regenv.grid import Grid
from regenv.ops.landmarks import wilson

NEAR_MM = 10.0           # an end this near to the common pose counts as found
GOLD_MM = 4.0            # at the corners of RIRE; mutual information's own optimum lies 1.4 to 3.1 mm from the gold
LATTICE_MM = 60.0        # landmarks: 3 x 3 x 3 points, this far apart, about the fixed foreground's centre
WORKING_MM = 2.0         # images of two people are averaged down to about this spacing
SHIFT_MM = 100.0         # of the starts, an axis


@dataclass(frozen=True)
class Spec:
    """A case by its files, so that a process can be told of it. Args: gold: file of the gold standard, or "";
    people: names of both subjects in :mod:`regenv.data.banks.brains`, or ()."""

    name: str
    fixed: str
    moving: str
    gold: str = ""
    people: tuple[str, ...] = ()


@dataclass(eq=False)
class Case:
    """Two images to register, and what is known of their pose.

    Attributes:
        gold: (8, 6) corners, fixed world then moving world, mm, if there is a gold standard.
        people: names of both subjects in :mod:`regenv.data.banks.brains`, or ().
    """

    name: str
    fixed: Image
    moving: Image
    gold: np.ndarray | None = None
    people: tuple[str, ...] = ()

    @cached_property
    def center(self) -> np.ndarray:
        """The fixed foreground's centre, (3,) mm."""
        return foreground_center(self.fixed)

    @cached_property
    def sitk_images(self) -> tuple[sitk.Image, sitk.Image]:
        """Both as SimpleITK's images."""
        return to_sitk(self.fixed), to_sitk(self.moving)

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

    def reference(self) -> np.ndarray:
        """The gold pose; else the best of searches and refinements from the centred and from the stored pose."""
        if self.gold is not None:
            return fitted(self.gold[:, :3], self.gold[:, 3:])
        search = [downsampled(image, MattesMI().voxels) for image in self.sitk_images]
        fine = [downsampled(image, Refinement().voxels) for image in self.sitk_images]
        found = []
        for start in (np.eye(4), centered(self.fixed, self.moving)):
            searched = MattesMI().register(*search, start, self.center).pull_back
            found += [Refinement().register(*fine, pose).pull_back for pose in (start, searched)]
        return min(found, key=lambda pose: evaluate_metric(*search, pose))

    def truth(self, reference: np.ndarray) -> np.ndarray:
        """The pose that ends are measured from: of two people whose brains lie in MNI space, the rigid map nearest to
        the affine one that leads through it; else the reference."""
        if not self.people:
            return reference
        fixed, moving = (brains.subject(name)["pull_back"].numpy() for name in self.people)
        return fitted(self.landmarks, moved((moving @ np.linalg.inv(fixed))[None], self.landmarks)[0])

    def displaced(self, reference: np.ndarray, motion: np.ndarray) -> tuple[Image, np.ndarray]:
        """The moving image moved in its header so that a rigid ``motion`` (4, 4) about the fixed foreground's centre
        leads from the fixed to the moving world.

        Returns: that image, and the map (4, 4) from its world back to the world of the file's own header.
        """
        truth = about(self.center, motion)
        there = truth @ np.linalg.inv(reference)
        return replace(self.moving, grid=moved_grid(self.moving.grid, there)), np.linalg.inv(there)


def motions(count: int, seed: int) -> np.ndarray:
    """(count, 4, 4) rigid motions: rotations uniform on SO(3), translations uniform in +-100 mm an axis."""
    rng = np.random.default_rng(seed)
    found = np.tile(np.eye(4), (count, 1, 1))
    for motion in found:
        motion[:3, :3] = random_rotation(rng)
        motion[:3, 3] = rng.uniform(-SHIFT_MM, SHIFT_MM, 3)
    return found


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A rotation (3, 3), uniform on SO(3): of a quaternion uniform on the sphere (Shoemake 1992)."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                     [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                     [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]])


def degrees_of(motion: np.ndarray) -> float:
    """The angle of a rotation (..., 3, 3) or motion, degrees."""
    return float(np.degrees(np.arccos(np.clip((np.trace(motion[:3, :3]) - 1) / 2, -1, 1))))


def about(center: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """A rigid motion (D+1, D+1) whose rotation turns about ``center`` (D,) instead of the origin."""
    return shift(center) @ motion @ shift(-center)


def moved_grid(grid: Grid, motion: np.ndarray) -> Grid:
    """A grid after a rigid motion (D+1, D+1) of the world."""
    n = grid.ndim
    direction = motion[:n, :n] @ np.reshape(grid.direction, (n, n))
    origin = motion[:n, :n] @ np.array(grid.origin) + motion[:n, n]
    return Grid(grid.shape, grid.spacing, tuple(origin.tolist()), tuple(direction.ravel().tolist()))


# ------------------------------------------------------------------------------------------------------------ the cases

def head_files() -> dict[str, Path]:
    """Heads that anyone can fetch, by name. MNI152 of nilearn shows the brain only."""
    template = downloads.get("colin27")
    people = downloads.get("bold5000")
    return {"MNI152 (brain only)": downloads.mni152()["t1"], "MNI 2009c": template["mni2009c"],
            "MNI 2009c T2": downloads.get("mni2009c")["t2"], "Colin27": template["colin27"],
            **{f"CSI{i}": people[f"csi{i}"] for i in (1, 2, 3)}}


PEOPLE = {"MNI152 (brain only)": "mni152", "MNI 2009c": "mni2009c", "MNI 2009c T2": "mni2009c", "Colin27": "colin27",
          **{f"CSI{i}": f"csi{i}" for i in (1, 2, 3)}}
PAIRS = (("MNI152 (brain only)", "CSI1"), ("MNI 2009c", "Colin27"), ("Colin27", "CSI3"), ("CSI1", "CSI2"),
         ("CSI2", "MNI 2009c T2"), ("CSI3", "CSI1"))


def specs(rire: Sequence[Path] = ()) -> list[Spec]:
    """Two heads each; with folders of RIRE's layout also CT and MR of the first beside other heads, and CT beside MR of
    all of them."""
    files = {name: str(path) for name, path in head_files().items()}
    found = [Spec(f"{a} ← {b}", files[a], files[b], people=(PEOPLE[a], PEOPLE[b])) for a, b in PAIRS]
    gold = [spec for folder in rire for spec in rire_specs(folder)]
    if gold:
        found += [Spec("RIRE CT ← Colin27", gold[0].fixed, files["Colin27"]),
                  Spec("RIRE MR ← CSI3", gold[0].moving, files["CSI3"])]
    return found + gold


def rire_specs(folder: Path) -> list[Spec]:
    """CT beside every MR of a patient: ``ct.EXT``, ``mr_NAME.EXT`` and ``gold_ct_to_mr_NAME.csv``, or
    ``ct_NAME.standard`` as RIRE publishes it; ``gold_ct_to_mr.csv`` is that of ``mr_t1``."""
    cts, found = sorted(folder.glob("ct.*")), []
    for moving in sorted(folder.glob("mr_*.*")):
        name = moving.name.split(".")[0].removeprefix("mr_")
        golds = [folder / f"gold_ct_to_mr_{name}.csv", folder / f"ct_{name}.standard",
                 *([folder / "gold_ct_to_mr.csv"] if name.lower() == "t1" else [])]
        found += [Spec(f"{folder.resolve().name}: CT ← MR {name}", str(cts[0]), str(moving), str(gold))
                  for gold in golds if gold.is_file() and cts][:1]
    if not found:
        raise ImageError(f"{folder}: holds no ct.*, mr_NAME.* and gold standard of these two; --rire needs a folder "
                         "with, for example, ct.nii.gz, mr_t1.nii.gz and gold_ct_to_mr.csv.")
    return found


def read_gold(path: str) -> np.ndarray:
    """(8, 6) corners, CT world then MR world, mm: of the lines that are numbers only, the last six of each."""
    rows = []
    for line in Path(path).read_text().splitlines():
        try:
            numbers = [float(word) for word in line.replace(",", " ").split()]
        except ValueError:
            continue
        if len(numbers) in (6, 7):
            rows.append(numbers[-6:])
    gold = np.array(rows)
    if gold.shape != (8, 6) or not np.isfinite(gold).all():
        raise ImageError(f"{path}: holds {len(rows)} lines of 6 or 7 numbers; 8 corners (CT x, y, z, MR x, y, z) are "
                         "needed.")
    return gold


@lru_cache(maxsize=2)
def load(spec: Spec) -> Case:
    """The case of a spec. Images of two people are averaged down to about 2 mm; those with a gold standard are not."""
    images = [read_image(path) for path in (spec.fixed, spec.moving)]
    if spec.gold:
        return Case(spec.name, images[0], images[1], read_gold(spec.gold))
    return Case(spec.name, *(coarser(image) for image in images), people=spec.people)


def coarser(image: Image, spacing: float = WORKING_MM) -> Image:
    """An image averaged over whole blocks of voxels, up to about a spacing in mm."""
    factors = [max(1, int(spacing / own + 0.01)) for own in image.grid.spacing]
    if max(factors) == 1:
        return image
    small = sitk.BinShrink(framed(image.array, image.grid, np.float32), factors)
    return replace(image, array=sitk.GetArrayFromImage(small), grid=Grid.from_sitk(small))


# --------------------------------------------------------------------------------------------------------- measures

def moved(pull_backs: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, D) under each pose (K, D+1, D+1): (K, N, D)."""
    n = points.shape[-1]
    return np.einsum("kij,nj->kni", pull_backs[:, :n, :n], points) + pull_backs[:, None, :n, n]


def gaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean distance of corresponding points (..., N, D): (...)."""
    return np.linalg.norm(a - b, axis=-1).mean(-1)


def common_points(points: np.ndarray) -> np.ndarray:
    """Where most ends put the landmarks, (K, N, 3) to (N, 3): mean over the end with most others within 10 mm and
    over those."""
    between = np.stack([gaps(points, one) for one in points])
    near = between <= NEAR_MM
    order = np.lexsort((between.mean(1), -near.sum(1)))
    return points[near[order[0]]].mean(0)


def fitted(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The rigid map (D+1, D+1) of points a (N, D) to b (N, D), least squares (Kabsch 1976)."""
    n = a.shape[1]
    u, _, vt = np.linalg.svd((a - a.mean(0)).T @ (b - b.mean(0)))
    sign = np.diag([1.0] * (n - 1) + [np.sign(np.linalg.det(u @ vt))])
    pull_back = np.eye(n + 1)
    pull_back[:n, :n] = (u @ sign @ vt).T
    pull_back[:n, n] = b.mean(0) - pull_back[:n, :n] @ a.mean(0)
    return pull_back


def share(found: Iterable[bool]) -> list[float]:
    """Share of True, and its 95 % Wilson interval."""
    found = list(found)
    return [float(np.mean(found)), *wilson(sum(found), len(found))]


def measure(case: Case, reference: np.ndarray, ends: np.ndarray, seconds: Sequence[float]) -> dict[str, Any]:
    """One row of the table, of a method's ends (K, 4, 4)."""
    points, right = moved(ends, case.landmarks), moved(case.truth(reference)[None], case.landmarks)[0]
    common = common_points(points)
    spread = gaps(points, common)
    near = spread <= NEAR_MM
    row = {"starts": len(ends), "within_10mm": share(near.tolist()), "found": near.tolist(),
           "median_spread_mm": float(np.median(spread)), "p90_spread_mm": float(np.percentile(spread, 90)),
           "common_to_reference_mm": float(gaps(common, right)),
           "within_10mm_of_reference": share((gaps(points, right) <= NEAR_MM).tolist()),
           "seconds": float(np.median(seconds))}
    if case.gold is not None:
        error = gaps(moved(ends, case.gold[:, :3]), case.gold[:, 3:])
        row |= {"gold_within_4mm": share((error <= GOLD_MM).tolist()), "gold_median_mm": float(np.median(error)),
                "gold_p90_mm": float(np.percentile(error, 90))}
    return row
