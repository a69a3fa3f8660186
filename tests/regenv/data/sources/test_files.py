"""The user's own images as an environment: geometry, landmarks, labels, masks, unknown truth, bad input."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import SimpleITK as sitk
import torch

import regenv  # noqa: F401
from regenv.data.io.images import Image, ImageError
from regenv.data.io.resampling import reduced
from regenv.data.io.transforms import write_transform
from regenv.data.sources.files import Files, image_pair
from regenv.grid import Grid

SIZE = (40, 36, 44)


def blobs(grid, shift=(0.0, 0.0, 0.0)):
    """Smooth blobs at fixed world places, plus ``shift``, on any grid."""
    points = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    world = grid.to_world(points) - np.asarray(shift)
    centers = np.array([[20.0, -15, 10], [-25, 10, 0], [5, 20, -18]])
    return sum(w * np.exp(-((world - c) ** 2).sum(-1) / 200) for w, c in zip((1, 0.7, 0.5), centers, strict=True))


def write(path, array, grid):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    sitk.WriteImage(image, str(path))
    return str(path)


@pytest.fixture
def pair(tmp_path):
    """A fixed image and one that is displaced by a known shift, on an oblique, anisotropic grid."""
    angle = np.deg2rad(25)
    turn = [np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1]
    fixed = Grid.centered(SIZE, (2.0, 2.0, 2.5))
    moving = Grid.centered((30, 50, 48), (2.2, 1.8, 3.0), (4.0, -3.0, 2.0), turn)
    shift = np.array([6.0, -4.0, 3.0])
    truth = np.eye(4)
    truth[:3, 3] = shift
    write_transform(tmp_path / "truth.tfm", truth)
    return {"fixed": write(tmp_path / "fixed.nii.gz", blobs(fixed), fixed),
            "moving": write(tmp_path / "moving.nrrd", blobs(moving, shift), moving),
            "truth": str(tmp_path / "truth.tfm")}


def make(pairs, **arguments):
    return gym.make_vec("RegRigid3D-v0", num_envs=2, size=24, spacing=4.0, observation="pair",
                        source={"name": "files", "pairs": pairs}, **arguments)


def test_known_truth_aligns_the_observation(pair):
    env = make([pair], ranges=[1e-9] * 6)
    observation, infos = env.reset(seed=0)
    assert infos["tre"].max() < 1e-6
    assert np.corrcoef(observation[0, 0].ravel(), observation[0, 1].ravel())[0, 1] > 0.98


def test_unknown_truth_has_no_distance_and_moves_what_is_seen(pair):
    env = make([{k: v for k, v in pair.items() if k != "truth"}])
    _, infos = env.reset(seed=0)
    assert torch.isnan(infos["distance"]).all() and torch.isnan(infos["tre"]).all()
    before = env.unwrapped.state.pull_back
    _, rewards, terminated, _, _ = env.step(torch.tensor([0, 5]))
    step = torch.linalg.inv(before) @ env.unwrapped.state.pull_back
    assert torch.allclose(step[:, :3, 3], torch.tensor([[1.0, 0, 0], [0, 0, -1]], dtype=torch.float64), atol=1e-9)
    assert rewards.abs().max() == 0 and not terminated.any()


def test_landmarks_measure_without_truth(pair, tmp_path):
    points = np.array([[10.0, 0, 0], [0, 10, 5], [-10, 3, 2]])
    for name, where in (("f", points), ("m", points + np.array([6.0, -4.0, 3.0]))):
        np.savetxt(tmp_path / f"{name}.csv", where, delimiter=",", header="x,y,z", comments="")
    files = {k: v for k, v in pair.items() if k != "truth"}
    env = make([{**files, "fixed_landmarks": str(tmp_path / "f.csv"), "moving_landmarks": str(tmp_path / "m.csv")}],
               ranges=[1e-9] * 6)
    _, infos = env.reset(seed=0)
    assert infos["tre"].tolist() == pytest.approx([np.linalg.norm([6, -4, 3])] * 2, abs=1e-6)


def test_labels_give_dice_and_masks_blank(pair, tmp_path):
    grid = Grid.centered(SIZE, (2.0, 2.0, 2.5))
    labels = (blobs(grid) > 0.4).astype(np.uint8)
    label_path = write(tmp_path / "labels.nii.gz", labels, grid)
    files = {"fixed": pair["fixed"], "moving": pair["fixed"], "truth": "identity", "fixed_labels": label_path,
             "moving_labels": label_path, "fixed_mask": label_path}
    observation, infos = make([files], ranges=[1e-9] * 6).reset(seed=0)
    far = make([files], ranges=[30] * 3 + [1e-9] * 3).reset(seed=4)[1]
    assert infos["dice"].min() > 0.75 and far["dice"].max() < 0.3
    assert (observation[:, 0] > 0).float().mean() < 0.6 * (observation[:, 1] > 0).float().mean()


def test_reduction_keeps_places_whatever_the_grid():
    oblique = Grid.centered((60, 70, 64), (1.0, 1.2, 1.1), (1.0, 2.0, 3.0),
                            [0, 1, 0, -1, 0, 0, 0, 0, 1])
    straight = Grid.centered((24,) * 3, 4.0)
    seen = reduced(Image(blobs(oblique).astype(np.float32), oblique, "x"), straight)
    plain = blobs(straight)
    assert np.corrcoef(seen.ravel(), plain.ravel())[0, 1] > 0.98


def test_lanes_of_image_pair_share_one_truth():
    grid = Grid.centered((20,) * 3, 3.0)
    image = Image(blobs(grid).astype(np.float32), grid, "x")
    batch = image_pair(image, image, grid, lanes=3)
    assert batch.lanes == 3 and not batch.known.any() and batch.fixed.shape == (3, 1, 20, 20, 20)


@pytest.mark.parametrize(("pairs", "named"), [
    ((), "pairs is empty"),
    (({"fixed": "a.nii"},), "moving"),
    (({"fixed": "a.nii", "moving": "b.nii", "mask": "c.nii"},), "mask"),
    (({"fixed": "a.nii", "moving": "b.nii", "fixed_labels": "c.nii"},), "fixed_labels"),
])
def test_bad_pairs_are_named(pairs, named):
    with pytest.raises(ImageError, match=named):
        Files(3, pairs)


def test_dimension_mismatch_names_the_file(tmp_path):
    flat = sitk.GetImageFromArray(np.random.default_rng(0).random((20, 20)).astype(np.float32))
    sitk.WriteImage(flat, str(tmp_path / "flat.nii.gz"))
    path = str(tmp_path / "flat.nii.gz")
    with pytest.raises(ImageError, match=r"flat.nii.gz: image is 2D"):
        make([{"fixed": path, "moving": path}]).reset(seed=0)


@pytest.mark.parametrize("ids", [(40_001, 312_782_604), (5, 2**53 + 1)])
def test_the_users_label_numbers_reach_the_environment(pair, tmp_path, ids):
    grid = Grid.centered(SIZE, (2.0, 2.0, 2.5))
    labels = np.where(blobs(grid) > 0.6, ids[1], np.where(blobs(grid) > 0.3, ids[0], 0))
    large = write(tmp_path / "large.nrrd", labels, grid)
    files = {"fixed": pair["fixed"], "moving": pair["fixed"], "truth": "identity"}
    small = write(tmp_path / "small.nrrd", (labels > 0).astype(np.uint8), grid)
    pairs = [files | dict.fromkeys(("fixed_labels", "moving_labels"), path) for path in (large, small)]
    env = make(pairs[:1], ranges=[1e-9] * 6)
    infos = env.reset(seed=0)[1]
    state = env.unwrapped.state
    assert sorted(state.pair.fixed_labels.unique().tolist()) == [0, *ids] == sorted(state.labels.unique().tolist())
    assert infos["dice"].min() > 0.6
    source = Files(3, tuple(pairs))
    draws = [source.draw([np.random.default_rng(seed)], Grid.centered((16,) * 3, 6.0), torch.device("cpu"))
             for seed in range(6)]
    assert len({draw.fixed_labels.dtype for draw in draws}) == 1


@pytest.mark.parametrize(("change", "words"), [
    ({"fixed_mask": "far"}, r"far\.nrrd: it is 0 in every voxel of .*fixed\.nii\.gz"),
    ({"moving_mask": "flat"}, r"flat\.nrrd: it is 2D"),
    ({"fixed_labels": "far", "moving_labels": "near"}, r"far\.nrrd: it is 0 in every voxel"),
    ({"fixed_landmarks": "one", "moving_landmarks": "two"}, r"two\.csv: number of landmarks is 2, but .* has 1"),
    ({"fixed_landmarks": "plane", "moving_landmarks": "plane"}, r"plane\.csv: landmarks have shape \(1, 2\)"),
    ({"truth": "turn"}, r"turn\.tfm: transform is 2D"),
])
def test_what_does_not_belong_to_a_pair_is_named(pair, tmp_path, change, words):
    ones = np.ones((8, 8, 8), np.uint8)
    made = {"far": write(tmp_path / "far.nrrd", ones, Grid.centered((8,) * 3, 2.0, (5e3, 0.0, 0.0))),
            "near": write(tmp_path / "near.nrrd", ones, Grid.centered((8,) * 3, 2.0)),
            "flat": write(tmp_path / "flat.nrrd", ones[0], Grid.centered((8,) * 2, 2.0))}
    for name, text in (("one", "1,2,3\n"), ("two", "1,2,3\n4,5,6\n"), ("plane", "1,2\n")):
        made[name] = str(tmp_path / f"{name}.csv")
        (tmp_path / f"{name}.csv").write_text(text)
    made["turn"] = str(tmp_path / "turn.tfm")
    write_transform(made["turn"], np.eye(3))
    files = pair | {key: made[name] for key, name in change.items()}
    with pytest.raises(ImageError, match=words):
        make([files]).reset(seed=0)


def test_pairs_with_other_numbers_of_landmarks_are_refused(pair, tmp_path):
    pairs = []
    for count in (2, 3):
        path = tmp_path / f"{count}.csv"
        path.write_text("1,2,3\n" * count)
        pairs.append(pair | dict.fromkeys(("fixed_landmarks", "moving_landmarks"), str(path)))
    with pytest.raises(ImageError, match=r"3\.csv: number of landmarks is 3, but .*2\.csv has 2"):
        make(pairs).reset(seed=0)
