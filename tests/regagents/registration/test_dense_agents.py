"""Dense agents between two files: any of them deforms, on images of any shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from regagents.agents import WEIGHTS
from regagents.common.checkpoints import CheckpointError
from regagents.registration.deformation import optimiser
from regagents.registration.dense_agents import Played, stage
from regenv.data.banks import downloads
from regenv.data.banks.brain_preparation import FRAME
from regenv.data.banks.brains import VERSION, subject
from regenv.data.io.images import Image
from regenv.ops.overlap import dice
from regenv.ops.warp import warp_dense
from tests.regagents.toys import checkpoint

BETTER = 0.015      # Dice of tissues by which the agent alone improves on the affine alignment


class Shift:
    """Moves everything by one voxel along the last axis, twice as far as allowed."""

    def play(self, observation: torch.Tensor, allowed: None, memory: int | None) -> tuple[torch.Tensor, int]:
        assert observation.dtype == torch.uint8
        field = torch.zeros(len(observation), 2, *observation.shape[2:])
        field[:, 1] = 2.0
        return field, (memory or 0) + 1


def test_steps_are_bounded_and_composed_and_the_moving_image_warped_once() -> None:
    images = torch.rand(2, 1, 1, 20, 24)
    u = Played(Shift(), steps=3, bound=1.0, byte=True).solve(*images)
    torch.testing.assert_close(u[:, 1], torch.full((1, 20, 24), 3.0))
    assert not u[:, 0].any()


@pytest.mark.parametrize("name", ["brain2d-spac"])
@pytest.mark.parametrize("shape", [(96, 120), (63, 77)])
def test_an_agent_of_one_size_plays_on_others(name: str, shape: tuple[int, ...]) -> None:
    u = stage(name, 2).solver.solve(*torch.rand(2, 1, 1, *shape))
    assert u.shape == (1, 2, *shape) and torch.isfinite(u).all()


def test_an_agent_that_moves_poses_is_no_stage(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="moves a pose"):
        stage(str(checkpoint(tmp_path / "toy.safetensors", 2)), 2)


@pytest.mark.slow
def test_the_brain_agent_alone_improves_on_people_it_was_not_trained_on() -> None:
    """Nothing refines what the network finds."""
    people = ("csi3", "colin27")
    for name in people:
        if not (downloads.cache_dir() / "brains" / f"{name}-v{VERSION}.safetensors").is_file():
            pytest.skip(f"{name} is not prepared; draw once from Brains3D")
    kept = [subject(name) for name in people]
    images = [Image(each["image"].numpy().astype(np.float32) / 255, FRAME, name)
              for name, each in zip(people, kept, strict=True)]
    labels = [each["labels"][None, None].to(torch.int16) for each in kept]
    if not (WEIGHTS / "brain3d-oneshot.safetensors").is_file():
        pytest.skip("no weights are shipped yet; `regagents train brain3d-oneshot` makes some")
    agent = optimiser("brain3d-oneshot", 3, refine=False)
    for a, b in ((0, 1), (1, 0)):
        found = agent.register(images[a], images[b], np.eye(4))
        u = torch.nn.functional.interpolate(torch.from_numpy(found.displacement).float()[None], FRAME.shape,
                                            mode="trilinear", align_corners=False)
        u = u * (torch.tensor(FRAME.shape) / torch.tensor(found.grid.shape)).view(1, 3, 1, 1, 1)
        shares = warp_dense(torch.cat([(labels[b] == k).float() for k in (1, 2, 3)], 1), u)
        moved = torch.where(shares.sum(1, keepdim=True) >= 0.5, shares.argmax(1, keepdim=True) + 1, 0).to(torch.int16)
        before, after = (dice(labels[a], each, (1, 2, 3)).mean() for each in (labels[b], moved))
        assert after > before + BETTER
        assert found.folding < 1e-3
