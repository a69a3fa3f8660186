"""LPBA40, ADNI and its like, LiTS, SLIVER and Learn2Reg in their own layouts, on tiny files: found, read, paired, and
every way to be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regenv.data.io.images import ImageError
from regenv.data.layouts.brains_and_livers import Collection, learn2reg, lits, lpba40, sliver, subject_folders
from regenv.data.pairs import PairBatch, PairSource
from regenv.data.sources.folders import FolderPairs
from regenv.grid import Grid
from regenv.ops.overlap import dice
from tests.regenv.data.io.helpers import write_analyze

CPU = torch.device("cpu")
SHAPE, SPACING = (12, 16, 14), (2.0, 2.0, 3.0)
GRID = Grid.centered((20, 18, 16), 2.0)
SUBVOXEL = 0.03         # of intensities in [0, 1]: the same grid, up to float32


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng(seed + i) for i in range(count)]


def scan(index: int, shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """A ball of its own place and size with a core: int16 image, labels 0, 1 and 2."""
    axes = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    away = np.sqrt(sum((a - o) ** 2 for a, o in zip(axes, (0.5 * index, -0.5 * index, 0), strict=False)))
    labels = (away < 5).astype(np.uint8) + (away < 2.5 + 0.3 * index)
    return (labels * 100 + 20 * np.sin(sum(axes)) + 30).astype(np.int16), labels


def grid_of(index: int, shape: tuple[int, ...] = SHAPE) -> Grid:
    """Anywhere in the world."""
    n = len(shape)
    return Grid.centered(shape, SPACING[:n], (30.0 * index, -7.0 * index, 4.0)[:n])


def write(path: Path, array: np.ndarray, grid: Grid) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    sitk.WriteImage(image, str(path))


# --------------------------------------------------------------------------------------------------------- the layouts

def make_lpba40(folder: Path) -> None:
    for index, name in enumerate(("S01", "S02", "S40")):
        image, labels = scan(index)
        for kind, array in (("skullstripped", image), ("structure.label", labels)):
            write_analyze(folder / "delineation_space" / name / f"{name}.delineation.{kind}", array, SPACING,
                          "<>"[index % 2])
        write_analyze(folder / "native_space" / name / f"{name}.native.mri", image, SPACING)


def make_lpba40_nifti(folder: Path) -> None:
    for index, name in enumerate(("S01", "S02", "S40")):
        image, labels = scan(index)
        write(folder / f"{name}.delineation.skullstripped.nii.gz", image, grid_of(index))
        write(folder / "label" / f"{name}.delineation.structure.label.nii.gz", labels, grid_of(index))


def make_bids(folder: Path) -> None:
    """ABIDE and ADHD; a mask and a functional image beside the T1."""
    for index, name in enumerate(("sub-0001", "sub-0002", "sub-0010")):
        image, labels = scan(index)
        write(folder / name / "anat" / f"{name}_T1w.nii.gz", image, grid_of(index))
        write(folder / name / "anat" / f"{name}_T2w.nii.gz", image, grid_of(index))
        write(folder / name / "anat" / f"{name}_dseg.nii.gz", labels, grid_of(index))
    write(folder / "derivatives" / "atlas.nii.gz", image, grid_of(0))


def make_adni(folder: Path) -> None:
    """One NIfTI a subject, deep in folders."""
    for index, name in enumerate(("002_S_0295", "002_S_0413", "941_S_1311")):
        write(folder / name / "MP-RAGE" / "2006-04-18" / "I13722" / f"ADNI_{name}.nii", scan(index)[0], grid_of(index))


def make_flat(folder: Path) -> None:
    for index, name in enumerate(("a", "b", "c")):
        image, labels = scan(index)
        write(folder / f"{name}.nii.gz", image, grid_of(index))
        write(folder / f"{name}_seg.nii.gz", labels, grid_of(index))


def make_lits(folder: Path) -> None:
    for index, number in enumerate((0, 2, 10)):
        image, labels = scan(index)
        write(folder / f"batch {1 + index % 2}" / f"volume-{number}.nii", image, grid_of(index))
        write(folder / "segmentations" / f"segmentation-{number}.nii", labels, grid_of(index))


def make_sliver(folder: Path) -> None:
    for index, number in enumerate((1, 2, 20)):
        image, labels = scan(index)
        write(folder / "scan" / f"liver-orig{number:03}.mhd", image, grid_of(index))
        write(folder / "label" / f"liver-seg{number:03}.mhd", (labels > 0).astype(np.uint8), grid_of(index))


def make_learn2reg(folder: Path) -> None:
    """NLST: pairs of one patient with key-points; masks where the others have labels."""
    training = []
    for index in range(4):
        image, labels = scan(index)
        stem = f"NLST_{index // 2:04}_{index % 2:04}"
        write(folder / "imagesTr" / f"{stem}.nii.gz", image, grid_of(index))
        write(folder / "masksTr" / f"{stem}.nii.gz", (labels > 0).astype(np.uint8), grid_of(index))
        write(folder / "labelsTr" / f"{stem}.nii.gz", labels, grid_of(index))
        points = np.array([[6, 7, 5], [8, 9, 6 + index], [3, 4, 2]])
        (folder / "keypointsTr").mkdir(exist_ok=True)
        np.savetxt(folder / "keypointsTr" / f"{stem}.csv", points, delimiter=",", fmt="%.2f")
        training.append({"image": f"./imagesTr/{stem}.nii.gz", "mask": f"./masksTr/{stem}.nii.gz",
                         "keypoints": f"./keypointsTr/{stem}.csv"})
    pairs = [{"fixed": training[i]["image"], "moving": training[i + 1]["image"]} for i in (0, 2)]
    content = {"name": "NLST", "tensorImageShape": {"0": SHAPE}, "training": training,
               "training_paired_images": pairs[:1], "registration_val": pairs[1:]}
    (folder / "NLST_dataset.json").write_text(json.dumps(content))


def make_oasis(folder: Path) -> None:
    """Unpaired training images, one mapping a modality."""
    for index in range(3):
        image, labels = scan(index)
        write(folder / "imagesTr" / f"OASIS_{index:04}_0000.nii.gz", image, grid_of(index))
        write(folder / "labelsTr" / f"OASIS_{index:04}_0000.nii.gz", labels, grid_of(index))
    names = [f"./imagesTr/OASIS_{index:04}_0000.nii.gz" for index in range(3)]
    content = {"training": {"0": [{"image": name} for name in names]},
               "registration_val": [{"fixed": names[0], "moving": names[2]}]}
    (folder / "OASIS_dataset.json").write_text(json.dumps(content))


LAYOUTS: dict[str, tuple[Callable[[Path], None], Callable[..., Collection], dict[str, Any], tuple[str, ...]]] = {
    "lpba40": (make_lpba40, lpba40, {}, ("S01", "S02", "S40")),
    "lpba40 nifti": (make_lpba40_nifti, lpba40, {}, ("S01", "S02", "S40")),
    "bids": (make_bids, subject_folders, {"labels": "dseg"}, ("sub-0001", "sub-0002", "sub-0010")),
    "adni": (make_adni, subject_folders, {}, ("002_S_0295", "002_S_0413", "941_S_1311")),
    "flat": (make_flat, subject_folders, {"labels": "seg"}, ("a", "b", "c")),
    "lits": (make_lits, lits, {}, ("0", "2", "10")),
    "sliver": (make_sliver, sliver, {}, ("001", "002", "020")),
    "oasis": (make_oasis, learn2reg, {}, tuple(f"OASIS_{i:04}_0000" for i in range(3))),
}
NAMES = {lpba40: "lpba40", subject_folders: "subjects", lits: "lits", sliver: "sliver", learn2reg: "learn2reg"}


def source_of(layout: str, folder: Path, **arguments: Any) -> FolderPairs:
    make, adapter, options, _ = LAYOUTS[layout]
    make(folder)
    return FolderPairs(3, NAMES[adapter], str(folder), **{"options": options, **arguments})


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_subjects_are_found_in_order_each_with_its_labels(layout: str, tmp_path: Path) -> None:
    make, adapter, options, names = LAYOUTS[layout]
    make(tmp_path)
    found = adapter(tmp_path, **options)
    assert tuple(each.name for each in found.scans) == names and found.pairs is None
    for each in found.scans:
        assert each.image.is_file() and (each.labels is None) == (layout == "adni")
        assert each.labels is None or (each.labels.is_file() and each.labels != each.image)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_pairs_show_what_the_files_hold(layout: str, tmp_path: Path) -> None:
    """On a grid of the files' own spacing and shape nothing is resampled: labels come back as written."""
    source, own = source_of(layout, tmp_path), Grid.centered(SHAPE, SPACING, (5.0, 6.0, 7.0))
    pair = source.draw(generators(12), own, CPU)
    assert isinstance(source, PairSource) and pair.fixed.shape == (12, 1, *SHAPE)
    written = [scan(index) for index in range(3)]
    merged = layout in ("lits", "sliver")
    for side in ("fixed", "moving"):
        images, labels = getattr(pair, side), getattr(pair, f"{side}_labels")
        if layout == "adni":
            assert labels is None
            continue
        assert labels.dtype == torch.int16
        for image, label in zip(images, labels, strict=True):
            found = [i for i, (_, want) in enumerate(written)
                     if np.array_equal((want > 0) if merged else want, label[0].numpy())]
            assert len(found) == 1
            assert np.corrcoef(written[found[0]][0].ravel(), image[0].numpy().ravel())[0, 1] > 0.99
    assert not (pair.fixed == pair.moving).flatten(1).all(1).any()


def test_a_coarser_finer_or_2d_grid_sees_the_same_scans(tmp_path: Path) -> None:
    source = source_of("flat", tmp_path)
    pair = source.draw(generators(4), GRID, CPU)
    assert pair.fixed.shape == (4, 1, *GRID.shape) and pair.fixed.min() >= 0 and pair.fixed.max() <= 1
    volumes = pair.fixed_labels.flatten(1).gt(0).sum(1) * 8.0
    assert (volumes / ((scan(0)[1] > 0).sum() * 12.0) - 1).abs().max() < 0.15
    plane = Grid.centered((16, 14), 2.0)
    flat = FolderPairs(2, "subjects", str(tmp_path), options={"labels": "seg"}, level=1.5)
    level = flat.draw(generators(4), plane, CPU)
    whole = source.draw(generators(4), Grid.centered(SHAPE, SPACING), CPU)
    assert torch.equal(level.fixed_labels[:, 0], whole.fixed_labels[:, 0, 6])     # 1.5 mm over the middle is slice 6
    torch.testing.assert_close(level.moving[:, 0], whole.moving[:, 0, 6], rtol=0, atol=SUBVOXEL)


def test_2d_images_are_paired_in_2d(tmp_path: Path) -> None:
    for index, name in enumerate(("a", "b")):
        image, labels = scan(index, (14, 12))
        write(tmp_path / name / "slice.nii", image, grid_of(index, (14, 12)))
        write(tmp_path / name / "slice_label.nii", labels, grid_of(index, (14, 12)))
    source = FolderPairs(2, "subjects", str(tmp_path), options={"labels": "label"})
    pair = source.draw(generators(2), Grid.centered((14, 12), 2.0), CPU)
    assert {tuple(each.ravel().tolist()) for each in pair.fixed_labels} <= {
        tuple(scan(index, (14, 12))[1].ravel().tolist()) for index in range(2)}
    with pytest.raises(ImageError, match=r"slice.nii: image is 2D; this environment needs 3D images"):
        FolderPairs(3, "subjects", str(tmp_path), options={"labels": "label"}).draw(generators(1), GRID, CPU)


def test_learn2reg_gives_pairs_masks_and_key_points(tmp_path: Path) -> None:
    make_learn2reg(tmp_path)
    for split, indices in (("train", (0, 1)), ("val", (2, 3))):
        found = learn2reg(tmp_path, split)
        assert found.pairs == ((found.scans[0].name, found.scans[1].name),) and len(found.scans) == 2
        assert all(each.labels and each.mask and each.keypoints for each in found.scans)
        pair = FolderPairs(3, "learn2reg", str(tmp_path), options={"split": split}).draw(
            generators(2), Grid.centered(SHAPE, SPACING), CPU)
        assert pair.landmarks.shape == pair.targets.shape == (2, 3, 3)
        for points, image, index in ((pair.landmarks, pair.fixed, indices[0]), (pair.targets, pair.moving, indices[1])):
            voxels = Grid.centered(SHAPE, SPACING).to_voxel(points[0].numpy())       # array order z, y, x
            np.testing.assert_allclose(voxels, [[5, 7, 6], [6 + index, 9, 8], [2, 4, 3]], atol=1e-6)
            assert not image[:, 0][:, torch.from_numpy(scan(index)[1] == 0)].any()   # masked
    assert learn2reg(tmp_path, "val").scans[0].name == "NLST_0001_0000"


def test_cases_part_a_collection_and_an_atlas_is_always_fixed(tmp_path: Path) -> None:
    source = source_of("lpba40", tmp_path, cases=("S02", "S40"), atlas="S01")
    own = Grid.centered(SHAPE, SPACING)
    pair = source.draw(generators(10), own, CPU)
    assert len(pair.fixed.unique(dim=0)) == 1 and len(pair.moving.unique(dim=0)) == 2
    assert not (pair.moving == pair.fixed[0]).flatten(1).all(1).any()
    few = FolderPairs(3, "lpba40", str(tmp_path), cases=("S40", "S01")).draw(generators(10), own, CPU)
    assert len(torch.cat([few.fixed, few.moving]).unique(dim=0)) == 2


def test_a_window_maps_intensities(tmp_path: Path) -> None:
    pair = source_of("lits", tmp_path, window=(0.0, 200.0)).draw(generators(6), Grid.centered(SHAPE, SPACING), CPU)
    wanted = [np.clip(scan(index)[0] / 200, 0, 1) for index in range(3)]
    for image in pair.fixed[:, 0].numpy():
        assert min(np.abs(image - want).max() for want in wanted) < SUBVOXEL


def test_a_draw_is_reproducible_and_a_lane_independent(tmp_path: Path) -> None:
    source = source_of("flat", tmp_path)

    def tensors(pair: PairBatch) -> dict[str, torch.Tensor]:
        return {key: value for key, value in vars(pair).items() if value is not None}

    many, again = (tensors(source.draw(generators(4), GRID, CPU)) for _ in range(2))
    assert all(torch.equal(many[key], again[key]) for key in many) and not many["known"].any()
    assert "landmarks" not in many
    for lane in range(4):
        one = tensors(source.draw(generators(1, lane), GRID, CPU))
        assert all(torch.equal(one[key][0], many[key][lane]) for key in many)


def test_different_subjects_overlap_in_part(tmp_path: Path) -> None:
    pair = source_of("sliver", tmp_path).draw(generators(8), GRID, CPU)
    assert pair.fixed_labels is not None and pair.moving_labels is not None
    score = dice(pair.fixed_labels, pair.moving_labels, (1,))
    assert 0.6 < float(score.min()) <= float(score.max()) < 1


# -------------------------------------------------------------------------------------------------------------- errors

def shifted(path: Path, by: float = 3.0) -> None:
    image = sitk.ReadImage(str(path))
    image.SetOrigin([v + by for v in image.GetOrigin()])
    sitk.WriteImage(image, str(path))


def cropped(path: Path) -> None:
    sitk.WriteImage(sitk.ReadImage(str(path))[:, :, 1:], str(path))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-99])


def empty(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def one_of(folder: Path, pattern: str) -> Path:
    return sorted(folder.rglob(pattern))[0]


BAD: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "empty lpba40": ("lpba40", empty, r"number of subjects is 0; .* two SNN.delineation.skullstripped.hdr"),
    "empty lits": ("lits", empty, r"number of subjects is 0; .*volume-N.nii"),
    "empty sliver": ("sliver", empty, r"number of subjects is 0; .*liver-origNNN.mhd"),
    "empty subjects": ("bids", empty, r"number of subjects is 0"),
    "empty learn2reg": ("oasis", empty, r"number of \*dataset.json is 0; one is needed"),
    "no folder": ("lits", lambda p: p.rename(p.with_name("away")), r"no such folder"),
    "lpba40 label missing": ("lpba40", lambda p: one_of(p, "S02*label.hdr").unlink(),
                             r"S02.delineation.skullstripped.hdr: its labels are missing; subject S02"),
    "lits label missing": ("lits", lambda p: one_of(p, "segmentation-10.nii").unlink(),
                           r"volume-10.nii: its labels are missing; subject 10"),
    "sliver label missing": ("sliver", lambda p: one_of(p, "liver-seg020.mhd").unlink(), r"orig020.mhd: its labels"),
    "subject label missing": ("bids", lambda p: one_of(p, "sub-0002_dseg*").unlink(), r"sub-0002_T1w.*: its labels"),
    "learn2reg label missing": ("oasis", lambda p: one_of(p / "labelsTr", "*1_0000*").unlink(),
                                r"OASIS_0001_0000.nii.gz: its labels are missing, but other images"),
    "two images": ("bids", lambda p: one_of(p, "sub-0001_T2w*").rename(p / "sub-0001" / "second_T1w.nii.gz"),
                   r"sub-0001: number of images is 2 \(.*second_T1w.nii.gz\); one is needed"),
    "none called so": ("bids", lambda p: one_of(p, "sub-0001_T1w*").rename(p / "sub-0001" / "flair.nii.gz"),
                       r"sub-0001: number of images is 0"),
    "twice": ("lits", lambda p: (p / "volume-2.nii").write_bytes(one_of(p, "volume-2.nii").read_bytes()),
              r"volume-2.nii: subject 2 has also .*one file is needed"),
    "img missing": ("lpba40", lambda p: one_of(p, "S02*stripped.img").unlink(),
                    r"S02.delineation.skullstripped.hdr: its S02.delineation.skullstripped.img is missing"),
    "img truncated": ("lpba40", lambda p: cut(one_of(p, "S01*stripped.img")), r"S01.*d.hdr: voxel data .*truncated"),
    "hdr truncated": ("lpba40", lambda p: cut(one_of(p, "S01*label.hdr")), r"S01.*label.hdr: header is 249 bytes"),
    "nifti truncated": ("lits", lambda p: cut(one_of(p, "volume-0.nii")), r"volume-0.nii: .*truncated"),
    "no image at all": ("lits", lambda p: one_of(p, "volume-0.nii").write_text("x"), r"volume-0.nii: header is 1 b"),
    "raw missing": ("sliver", lambda p: one_of(p, "liver-orig001.raw").unlink(), r"orig001.mhd: .*does not exist"),
    "labels elsewhere": ("lits", lambda p: shifted(one_of(p, "segmentation-0.nii")),
                         r"segmentation-0.nii: origin is .*, but .* in its image .*volume-0.nii; .* one grid"),
    "labels of another shape": ("flat", lambda p: cropped(one_of(p, "b_seg*")),
                                r"b_seg.nii.gz: shape is \(11, 16, 14\), but \(12, 16, 14\) in its image"),
    "labels empty": ("flat", lambda p: write(p / "b_seg.nii.gz", np.zeros(SHAPE, np.uint8), grid_of(1)),
                     r"b_seg.nii.gz: labels are 0 everywhere"),
    "not json": ("oasis", lambda p: one_of(p, "*.json").write_text("{"), r"OASIS_dataset.json: it is not JSON"),
    "json list": ("oasis", lambda p: one_of(p, "*.json").write_text("[]"), r"content is a list; a JSON object"),
    "two json": ("oasis", lambda p: (p / "B_dataset.json").write_text("{}"), r"number of \*dataset.json is 2"),
    "no pairs": ("oasis", lambda p: one_of(p, "*.json").write_text('{"name": "OASIS"}'),
                 r"number of pairs is 0 for split 'train'; .*'training_paired_images' or two images in 'training'"),
    "bad list": ("oasis", lambda p: edit(one_of(p, "*.json"), training=[3]), r"training is \[3\]; it must be a list"),
    "half a pair": ("oasis", lambda p: edit(one_of(p, "*.json"), training_paired_images=[{"fixed": "imagesTr/a.nii"}]),
                    r"entry .* has no 'moving'|file 'imagesTr/a.nii' is missing"),
    "image missing": ("oasis", lambda p: one_of(p, "OASIS_0001*").unlink(), r"file '.*OASIS_0001_0000.* is missing"),
    "outside": ("oasis", lambda p: edit(one_of(p, "*.json"), training=[{"image": "../x.nii"}] * 2),
                r"file '../x.nii' lies outside"),
}


@pytest.mark.parametrize("spoil", list(BAD))
def test_bad_collections_are_named(spoil: str, tmp_path: Path) -> None:
    layout, change, told = BAD[spoil]
    source = source_of(layout, tmp_path / "data")
    change(tmp_path / "data")
    with pytest.raises(ImageError, match=told) as error:
        source.draw(generators(1), GRID, CPU)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_bad_key_points_and_splits_are_named(tmp_path: Path) -> None:
    make_learn2reg(tmp_path)
    for spoilt, told in (("x,y,z\n", "key-points cannot be read"), ("1,2\n", "key-points are 1 x 2; rows of 3")):
        one_of(tmp_path, "NLST_0000_0001.csv").write_text(spoilt)
        with pytest.raises(ImageError, match=f"NLST_0000_0001.csv: {told}"):
            FolderPairs(3, "learn2reg", str(tmp_path)).draw(generators(1), GRID, CPU)
    with pytest.raises(ImageError, match="split is 'dev'; it must be one of train, val, test"):
        learn2reg(tmp_path, "dev")
    with pytest.raises(ImageError, match="number of pairs is 0 for split 'test'; the list 'registration_test' is"):
        learn2reg(tmp_path, "test")


@pytest.mark.parametrize(("arguments", "told"), [
    ({"cases": ("0", "7")}, "case '7' is missing; the folder has 0, 2, 10"),
    ({"atlas": "S01"}, "case 'S01' is missing"),
    ({"cases": ("2",)}, "number of pairs is 0 among 2"),
])
def test_unknown_cases_are_named(arguments: dict, told: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=told):
        source_of("lits", tmp_path, **arguments).draw(generators(1), GRID, CPU)


@pytest.mark.parametrize(("arguments", "told"), [
    ({"ndim": 4}, "ndim is 4"), ({"layout": "oasis3"}, "layout is 'oasis3'; it must be one of lpba40, subjects"),
    ({"window": (3.0, 3.0)}, r"window is \(3.0, 3.0\)"), ({"level": float("nan")}, "level is nan mm"),
])
def test_bad_arguments_are_named(arguments: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        FolderPairs(**{"ndim": 3, "layout": "lits", "folder": "x", **arguments})
