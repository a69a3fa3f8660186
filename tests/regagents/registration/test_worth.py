"""What the agent is worth in ``register()``: real heads from any pose, with the agent and without it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from regagents.registration.pipeline import AUTO
from regagents.registration.register import register
from regenv.data.banks import downloads
from regenv.data.io.images import Image, read_image
from regenv.data.io.resampling import foreground_center
from tests.regagents.registration.phantoms import moved

POSES, SHIFT_MM, NEAR_MM, REACH_MM = 4, 100.0, 10.0, 60.0
RIVALS_ALONE = replace(AUTO[3], stages=())


def motion(image: Image, seed: int) -> NDArray[np.float64]:
    """A rotation uniform on SO(3) about an image's foreground, and a shift of up to 100 mm an axis, (4, 4)."""
    rng = np.random.default_rng(seed)
    middle, found = foreground_center(image), np.eye(4)
    found[:3, :3] = Rotation.random(random_state=rng).as_matrix()
    found[:3, 3] = middle - found[:3, :3] @ middle + rng.uniform(-SHIFT_MM, SHIFT_MM, 3)
    return found


@pytest.fixture(scope="module")
def heads() -> tuple[Image, Image]:
    """The brain of MNI152 and the head of a person who never was in training."""
    try:
        person = downloads.get("bold5000")["csi3"]
    except downloads.DatasetError as error:
        pytest.skip(str(error))
    return read_image(downloads.mni152()["t1"]), read_image(person)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_heads_from_any_pose_are_lost_without_the_agent(heads: tuple[Image, Image]) -> None:
    """A brain on a head with its skull and neck: information alone finds it from few of the poses."""
    fixed, moving = heads
    upright = register(fixed, moving, "none", initial="center").pull_back
    corners = foreground_center(fixed) + REACH_MM * np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, -1).T
    found = {"agent": 0, "alone": 0}
    for seed in range(POSES):
        there = motion(moving, seed)
        for name, chain in (("agent", AUTO[3]), ("alone", RIVALS_ALONE)):
            error = register(fixed, moved(moving, there), chain).pull_back - there @ upright
            found[name] += float(np.linalg.norm(corners @ error[:3, :3].T + error[:3, 3], axis=1).mean()) < NEAR_MM
    assert found["agent"] == POSES
    assert found["alone"] <= POSES - 2
