"""A new id from new parts: your own pairs, your own reward, registered beside the others."""

from dataclasses import dataclass, replace

import gymnasium as gym
import torch

import regenv
from regenv.env import RegistrationEnv
from regenv.ops.similarity import ncc
from regenv.tasks.arguments import source_for
from regenv.tasks.rigid import rigid
from regenv.vector import RegistrationVectorEnv


@dataclass(frozen=True)
class Negatives:
    """Brain phantoms whose moving image is inverted in half of all pairs."""

    ndim: int = 2

    def draw(self, rngs, grid, device, difficulty=1.0):
        pairs = source_for("phantoms", self.ndim).draw(rngs, grid, device, difficulty)
        flip = torch.tensor([rng.random() < 0.5 for rng in rngs], device=device).view(-1, *(1,) * (grid.ndim + 1))
        return replace(pairs, moving=torch.where(flip, 1 - pairs.moving, pairs.moving))


@dataclass(frozen=True)
class SquaredCorrelation:
    """Gain of the squared correlation, which is the same for an inverted image."""

    def score(self, state):
        return ncc(state.pair.fixed, state.warped).double().square()

    def __call__(self, before, after):
        return after.score - before.score


def negatives(**arguments):
    return replace(rigid(2, source=Negatives(), **arguments), reward=SquaredCorrelation())


gym.register("MyNegatives2D-v0", entry_point=lambda render_mode=None, **given: RegistrationEnv(negatives(**given),
                                                                                             render_mode),
             vector_entry_point=lambda num_envs, **given: RegistrationVectorEnv(negatives(**given), num_envs),
             max_episode_steps=100)

env = gym.make("MyNegatives2D-v0", size=48, spacing=5.0)
env.reset(seed=0)
print("rewards:", [round(float(env.step(action)[1]), 4) for action in range(6)], "with regenv", regenv.__version__)
print("batch:", gym.make_vec("MyNegatives2D-v0", num_envs=4, size=48, spacing=5.0).reset(seed=0)[0].shape)
