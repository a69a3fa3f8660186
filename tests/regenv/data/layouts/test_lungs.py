"""DIR-Lab's 4DCT and COPDgene and EMPIRE10 in their own layouts, on tiny files: found, read, paired, with landmarks,
and every way to be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regenv.data.io.images import ImageError
from regenv.data.layouts import lungs
from regenv.data.layouts.lungs import dirlab_4dct, dirlab_copd, empire10, read_raw
from regenv.data.pairs import PairSource
from regenv.data.sources.folders import LAYOUTS, FolderPairs
from regenv.grid import Grid

CPU = torch.device("cpu")
ACROSS, SLICES, SPACING = 16, 10, 2.0
SHAPE = (SLICES, ACROSS, ACROSS)
TINY = ((ACROSS, SLICES, SPACING),) * 10
GRID = Grid.centered(SHAPE, (SPACING, SPACING, 2.5))
WINDOW = (-1024.0, 0.0)
EXACT = 0.01            # of intensities in [0, 1]: the same grid, up to float32
SPOTS = np.array([[4, 6, 2], [11, 5, 7], [8, 9, 4]])    # x, y, z, from 0, z from the head down


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of sizes, for files of a few kilobytes."""
    monkeypatch.setattr(lungs, "_4DCT", TINY)
    monkeypatch.setattr(lungs, "_COPD", TINY)


def scan(down: int) -> np.ndarray:
    """HU + 1024 in the files' order: bright spots in a dark ball, those below the third slice ``down`` slices lower."""
    z, y, x = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    values = np.where((x - 7.5) ** 2 + (y - 7.5) ** 2 < 49, 200, 900) + z
    for place in moved(down):
        values[tuple(place[::-1])] = 1000
    return values.astype("<i2")


def moved(down: int) -> np.ndarray:
    return SPOTS + np.array([0, 0, down])


def write_raw(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(values.tobytes())


def write_points(path: Path, points: np.ndarray, text: str = "{}\t{}\t{}\t") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(text.format(*row) + "\n" for row in points.tolist()))


def write(path: Path, array: np.ndarray, grid: Grid | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    if grid is not None:
        image.SetSpacing(grid.spacing)
        image.SetOrigin(grid.origin)
    sitk.WriteImage(image, str(path))


def make_4dct(folder: Path) -> None:
    """Names as they come: cases 1, 2, 8 and 10 all differ; other phases lie beside."""
    for number, pack, image, points, phases in (
            (1, "Case1Pack", "case1_{}_s.img", "Case1_300_{}_xyz.txt", "ExtremePhases"),
            (2, "Case2Pack", "case2_{}-ssm.img", "Case2_300_{}_xyz.txt", "ExtremePhases"),
            (8, "Case8Pack/Case8Deploy", "case8_{}.img", "case8_dirLab300_{}_xyz.txt", "extremePhases"),
            (10, "Case10Pack", "case10_{}.img", "case10_dirLab300_{}_xyz.txt", "extremePhases")):
        for phase, down in (("T00", number % 2 + 1), ("T10", 0), ("T50", 0)):
            write_raw(folder / pack / "Images" / image.format(phase), scan(down))
            if phase != "T10":
                write_points(folder / pack / phases / points.format(phase), moved(down) + 1)
            write_points(folder / pack / "Sampled4D" / f"case{number}_4D-75_{phase}.txt", SPOTS + 1)


def make_copd(folder: Path) -> None:
    for number in (1, 2, 10):
        for phase, down in (("iBH", number % 2 + 1), ("eBH", 0)):
            stem = folder / f"copd{number}" / f"copd{number}"
            write_raw(stem / f"copd{number}_{phase}CT.img", scan(down))
            write_points(stem / f"copd{number}_300_{phase}_xyz_r1.txt", moved(down) + 1, "{}  {}  {}")


def make_empire(folder: Path) -> None:
    """Images of two sizes, anywhere in the world."""
    for number in (1, 2, 30):
        for index, side in enumerate(("Fixed", "Moving")):
            shape = (SLICES + 2 * index, ACROSS, ACROSS)
            grid = Grid.centered(shape, GRID.spacing, (10.0 * number, -20.0, 300.0))
            values = np.zeros(shape, np.int16)
            values[index:index + SLICES] = scan(0)[::-1].astype(np.int16) - 1024
            write(folder / "scans" / f"{number:02}_{side}.mhd", values, grid)
            lungs = np.where(values < -700, 1, 0) + np.where((values < -700) & (np.arange(ACROSS) > 7), 1, 0)
            write(folder / "lungMasks" / f"{number:02}_{side}.mhd", lungs.astype(np.uint8), grid)


MAKERS: dict[str, tuple[Callable[[Path], None], tuple[str, ...], tuple[int, ...]]] = {
    "dirlab-4dct": (make_4dct, ("case{}_T00", "case{}_T50"), (1, 2, 8, 10)),
    "dirlab-copd": (make_copd, ("copd{}_iBH", "copd{}_eBH"), (1, 2, 10)),
    "empire10": (make_empire, ("{:02}_Fixed", "{:02}_Moving"), (1, 2, 30)),
}
DIRLAB = ("dirlab-4dct", "dirlab-copd")


def source_of(layout: str, folder: Path, **arguments: Any) -> FolderPairs:
    MAKERS[layout][0](folder)
    return FolderPairs(3, layout, str(folder), **{"window": WINDOW, **arguments})


def test_sizes_and_spacings_are_those_of_the_web_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of an image as known of the archives, and millimetres within slices."""
    monkeypatch.undo()
    size = {"4": [2 * n * n * m for n, m, _ in lungs._4DCT], "copd": [m for _, m, _ in lungs._COPD]}
    assert size["4"][0] == 12320768 and size["4"][7:] == [67108864, 67108864, 62914560]
    assert size["copd"] == [121, 102, 126, 126, 131, 119, 112, 115, 116, 135]
    assert [mm for *_, mm in lungs._4DCT] == [0.97, 1.16, 1.15, 1.13, 1.10] + [0.97] * 5
    assert [mm for *_, mm in lungs._COPD] == [0.625, 0.645, 0.652, 0.590, 0.647, 0.633, 0.625, 0.586, 0.664,
                                                     0.742]


@pytest.mark.parametrize("layout", list(MAKERS))
def test_pairs_are_found_in_order(layout: str, tmp_path: Path) -> None:
    make, names, numbers = MAKERS[layout]
    make(tmp_path)
    found = LAYOUTS[layout](tmp_path)
    assert found.pairs == tuple(tuple(name.format(number) for name in names) for number in numbers)
    assert [each.name for each in found.scans] == [name.format(number) for number in numbers for name in names]
    for each in found.scans:
        assert each.image.is_file() and (each.labels is not None) == (layout == "empire10")
        assert (each.keypoints is not None) == (each.raw is not None) == (layout != "empire10")


@pytest.mark.parametrize("layout", DIRLAB)
def test_landmarks_lie_on_what_they_mark_and_the_feet_are_below(layout: str, tmp_path: Path) -> None:
    """On the files' own grid nothing is resampled: bright spots come back under their landmarks, turned head up."""
    pair = source_of(layout, tmp_path).draw(generators(12), GRID, CPU)
    assert pair.landmarks.shape == pair.targets.shape == (12, len(SPOTS), 3)
    downs = set()
    for lane in range(12):
        for image, points in ((pair.fixed, pair.landmarks), (pair.moving, pair.targets)):
            voxels = GRID.to_voxel(points[lane].numpy())
            np.testing.assert_allclose(voxels, np.round(voxels), atol=1e-6)
            spots = image[lane, 0].numpy()[tuple(np.round(voxels).astype(int).T)]
            np.testing.assert_allclose(spots, 1000 / 1024, atol=EXACT)
        shift = (pair.targets - pair.landmarks)[lane].numpy()
        assert np.ptp(shift, axis=0).max() < 1e-6 and np.abs(shift[:, :2]).max() < 1e-6
        downs.add(round(float(shift[0, 2]), 6))
        want = np.clip(scan(0)[::-1] / 1024, 0, 1)
        np.testing.assert_allclose(pair.moving[lane, 0].numpy(), want, atol=EXACT)
        assert pair.moving[lane, 0, 0].mean() > pair.moving[lane, 0, -1].mean()     # brighter towards the feet
    assert downs == {2.5, 5.0}          # up, from inhale to exhale
    assert pair.fixed_labels is None and not pair.known.any()


@pytest.mark.parametrize("layout", DIRLAB)
def test_exhale_can_be_fixed_and_cases_chosen(layout: str, tmp_path: Path) -> None:
    _, names, _ = MAKERS[layout]
    cases = tuple(name.format(2) for name in names)
    source = source_of(layout, tmp_path, options={"fixed": "exhale"}, cases=cases)
    assert isinstance(source, PairSource)
    pair = source.draw(generators(2), GRID, CPU)
    np.testing.assert_allclose((pair.targets - pair.landmarks).numpy(), [[[0, 0, -2.5]] * 3] * 2, atol=1e-6)
    with pytest.raises(ImageError, match=f"case 'x' is missing; the folder has {names[1].format(1)}, "):
        FolderPairs(3, layout, str(tmp_path), cases=("x",), options={"fixed": "exhale"}).draw(generators(1), GRID, CPU)


@pytest.mark.parametrize(("layout", "mask"), [
    ("dirlab-4dct", "{}/Masks/{}_s.mhd"), ("dirlab-4dct", "{}_mask.nii.gz"), ("dirlab-copd", "{}CT_mask.nii.gz"),
])
def test_own_masks_become_the_lung_s_label_whatever_their_header_says(layout: str, mask: str, tmp_path: Path) -> None:
    make, names, numbers = MAKERS[layout]
    make(tmp_path)
    lungs = (scan(0) < 300).astype(np.uint8)
    for number in numbers:
        for name in (each.format(number) for each in names):
            path = tmp_path / (mask.format(name, name) if "/" in mask else mask.format(name))
            write(path, lungs * (1 + number % 2))
            if layout == "dirlab-4dct" and "/" in mask:     # as others have them beside the images
                write(path.parent.parent / "Images" / path.name, lungs)
    pair = FolderPairs(3, layout, str(tmp_path)).draw(generators(3), GRID, CPU)
    for labels in (pair.fixed_labels, pair.moving_labels):
        assert torch.equal(labels[0, 0], torch.from_numpy(lungs[::-1].astype(np.int16)))
    write(path, lungs[1:])
    with pytest.raises(ImageError, match=r"shape is \(9, 16, 16\), but \(10, 16, 16\) in its image; .* same voxels"):
        FolderPairs(3, layout, str(tmp_path), window=WINDOW).draw(generators(1), GRID, CPU)
    path.unlink()
    with pytest.raises(ImageError, match="its labels are missing, but other images"):
        FolderPairs(3, layout, str(tmp_path), window=WINDOW).draw(generators(1), GRID, CPU)


def test_empire10_has_masks_and_key_points_where_the_user_has_some(tmp_path: Path) -> None:
    pair = source_of("empire10", tmp_path).draw(generators(4), GRID, CPU)
    assert set(pair.fixed_labels.unique().tolist()) == {0, 1} and pair.landmarks is None
    np.testing.assert_allclose(pair.fixed[0, 0].numpy(), np.clip(scan(0)[::-1] / 1024, 0, 1), atol=EXACT)
    assert torch.equal(pair.fixed_labels[0, 0] > 0, pair.fixed[0, 0] < 324 / 1024)
    for number in (1, 2, 30):
        for index, side in enumerate(("Fixed", "Moving")):
            points = SPOTS * np.array([1, 1, -1]) + np.array([0, 0, SLICES - 1 + index])
            write_points(tmp_path / "keypoints" / f"{number:02}_{side}.csv", points, "{},{},{}")
    elsewhere = Grid.centered(SHAPE, GRID.spacing, (1.0, 2.0, 3.0))
    pair = FolderPairs(3, "empire10", str(tmp_path), window=WINDOW).draw(generators(4), elsewhere, CPU)
    for image, points in ((pair.fixed, pair.landmarks), (pair.moving, pair.targets)):
        voxels = np.round(elsewhere.to_voxel(points[0].numpy())).astype(int)
        assert (image[0, 0].numpy()[tuple(voxels.T)] > 0.9).all()


# -------------------------------------------------------------------------------------------------------------- errors

def one_of(folder: Path, pattern: str) -> Path:
    return sorted(folder.rglob(pattern))[0]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-99])


BAD: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "4dct truncated": ("dirlab-4dct", lambda p: cut(one_of(p, "case2_T50*.img")),
                       r"case2_T50-ssm.img: file size is 5021 bytes; 16 x 16 x 10 voxels of 2 bytes need 5120. The "
                       r"file is truncated; copy or download it again"),
    "copd truncated": ("dirlab-copd", lambda p: cut(one_of(p, "copd1_eBHCT.img")),
                       r"copd1_eBHCT.img: file size is 5021 bytes; .* need 5120"),
    "of another case": ("dirlab-copd", lambda p: one_of(p, "copd1_eBHCT.img").write_bytes(bytes(6000)),
                        r"copd1_eBHCT.img: file size is 6000 bytes; .* not of this case"),
    "constant": ("dirlab-copd", lambda p: one_of(p, "copd1_eBHCT.img").write_bytes(bytes(5120)),
                 r"copd1_eBHCT.img: intensity is -1024 everywhere"),
    "raw of empire10 truncated": ("empire10", lambda p: cut(one_of(p / "scans", "02_Moving.raw")),
                                  r"02_Moving.mhd: .*truncated"),
    "no partner": ("dirlab-4dct", lambda p: one_of(p, "case8_T50.img").unlink(),
                   r"the image of case8_T50 is missing; caseN_T00\*.img and caseN_T50\*.img are needed"),
    "no partner in empire10": ("empire10", lambda p: one_of(p / "scans", "02_Moving.mhd").unlink(),
                               r"the image of 02_Moving is missing; scans/NN_Fixed.mhd and"),
    "no mask": ("empire10", lambda p: one_of(p / "lungMasks", "02_Moving.mhd").unlink(),
                r"02_Moving.mhd: its lungMasks/02_Moving.mhd is missing"),
    "no landmarks": ("dirlab-copd", lambda p: one_of(p, "copd2_300_eBH*").unlink(),
                     r"copd2_eBHCT.img: its landmarks are missing; copd2_eBH has none"),
    "case 11": ("dirlab-copd", lambda p: write_raw(p / "copd11_eBHCT.img", scan(0)),
                r"copd11_eBHCT.img: case is 11; it must be one of 1 to 10"),
    "twice": ("dirlab-4dct", lambda p: write_raw(p / "case2_T00_s.img", scan(0)),
              r"case2_T00_s.img: subject case2_T00 has also .*case2_T00-ssm.img|case2_T00-ssm.img: subject case2_T00 "
              r"has also .*case2_T00_s.img"),
    "landmarks cut": ("dirlab-4dct", lambda p: write_points(one_of(p, "Case1_300_T50*"), SPOTS[:2] + 1),
                      r"Case1_300_T50_xyz.txt: number of key-points is 2, but 3 in .*Case1_300_T00_xyz.txt; row n"),
    "landmarks of two columns": ("dirlab-4dct", lambda p: one_of(p, "Case1_300_T50*").write_text("1 2\n"),
                                 r"Case1_300_T50_xyz.txt: key-points are 1 x 2; rows of 3"),
    "landmarks no numbers": ("dirlab-copd", lambda p: one_of(p, "copd1_300_iBH*").write_text("x y z\n"),
                             r"copd1_300_iBH_xyz_r1.txt: key-points cannot be read"),
    "no folder": ("dirlab-copd", lambda p: p.rename(p.with_name("away")), r"no such folder"),
}


@pytest.mark.parametrize("spoil", list(BAD))
def test_bad_collections_are_named(spoil: str, tmp_path: Path) -> None:
    layout, change, told = BAD[spoil]
    source = source_of(layout, tmp_path / "data")
    change(tmp_path / "data")
    with pytest.raises(ImageError, match=told) as error:
        source.draw(generators(1), GRID, CPU)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(("adapter", "told"), [
    (dirlab_4dct, r"number of pairs is 0; caseN_T00"), (dirlab_copd, r"number of pairs is 0; copdN_iBHCT"),
    (empire10, r"number of pairs is 0; scans/NN_Fixed"),
])
def test_empty_folders_are_named(adapter: Callable, told: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=told):
        adapter(tmp_path)


def test_bad_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="fixed is 'T00'; it must be one of inhale, exhale"):
        dirlab_4dct(tmp_path, fixed="T00")
    with pytest.raises(ImageError, match=r"away.img: it cannot be read"):
        read_raw(tmp_path / "away.img", GRID)
    with pytest.raises(ValueError, match="sliver, learn2reg, dirlab-4dct, dirlab-copd, empire10"):
        FolderPairs(3, "dirlab", "x")
