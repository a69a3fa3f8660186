"""Your own images as pairs: an agent trains on a folder of NIfTI files, here three synthetic ones."""

import sys
import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO

import regenv  # noqa: F401
from regenv import Grid
from regenv.data.io.writing import write_image
from regenv.wrappers.sb3 import SB3VecEnv

if len(sys.argv) > 1:
    folder = Path(sys.argv[1])
else:
    folder = Path(tempfile.mkdtemp())
    grid, (y, x) = Grid.centered((96, 96), 2.5), np.indices((96, 96))
    for number in range(3):
        picture = 100.0 * (((x - 44 - 3 * number) / 30) ** 2 + ((y - 50) / 38) ** 2 < 1) + 50.0 * (abs(x - 40) < 6)
        write_image(folder / f"{number}.nii.gz", picture.astype(np.float32), grid)

files = sorted(folder.glob("*.nii*"))
pairs = [{"fixed": str(path), "moving": str(path), "truth": "identity"} for path in files]
source = {"name": "files", "pairs": pairs}
batch = gym.make_vec("RegRigid2D-v0", num_envs=8, source=source, size=48, spacing=5.0, autoreset_mode="SameStep")
PPO("CnnPolicy", SB3VecEnv(batch), n_steps=32, batch_size=64, seed=0, device="cpu").learn(1_024)
print(f"trained on {len(files)} images of {folder}")
