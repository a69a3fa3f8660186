"""An agent of your own: it tries every action on a copy of the episode and takes the one after which the images agree
best. No training; anything with SB3's ``predict`` can be evaluated so."""

import numpy as np
import torch

import regenv  # noqa: F401
from regagents.evaluation.evaluate import evaluate
from regagents.evaluation.methods import Policy
from regenv.core import RegistrationCore
from regenv.ops.similarity import ncc
from regenv.registry import build

ENV = {"size": 48, "spacing": 5.0, "observation": "pair", "max_episode_steps": 60}


class Greedy:
    """Normalised cross-correlation after each of the six unit actions, by shifting the picture it sees."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        fixed, warped = (torch.from_numpy(observation[:, c:c + 1]).float() for c in (0, 1))
        turned = [torch.nn.functional.grid_sample(warped, self.grid(motion, fixed.shape), padding_mode="border",
                                                  align_corners=False) for motion in self.motions()]
        scores = torch.stack([ncc(fixed, each) for each in turned], 1)
        return scores.argmax(1).numpy(), state

    def motions(self):
        """tx, ty (mm), theta (degrees) of each action: 2i raises parameter i of the pull-back, 2i + 1 lowers it."""
        return [sign * np.eye(3)[axis] for axis in range(3) for sign in (1, -1)]

    def grid(self, motion, shape):
        angle, half = np.deg2rad(motion[2]), ENV["size"] * ENV["spacing"] / 2
        rows = [[np.cos(angle), -np.sin(angle), motion[0] / half], [np.sin(angle), np.cos(angle), motion[1] / half]]
        theta = torch.tensor(rows, dtype=torch.float32).expand(shape[0], 2, 3)
        return torch.nn.functional.affine_grid(theta, shape, align_corners=False)


task = RegistrationCore(build("RegRigid2D-v0", **ENV)).task
agent = Policy("greedy on correlation", Greedy(), task)
print(evaluate("RegRigid2D-v0", [agent, "initial", "mi"], pairs=16, env_kwargs=ENV).table())
