"""Several processes that train one network do what one process with all their pairs does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HEAD = """
import sys, torch, gymnasium as gym
from regagents.common.checkpoints import save
import regenv
from regagents.common import distributed
torch.set_num_threads(1)
"""
DSL = HEAD + """
from regagents.dsl import DSL
with distributed.group("cpu"):
    source = {"name": "phantoms", "patients": 2, "bank_spacing": 3.0}
    env = gym.make("RegRigid2D-v0", size=32, spacing=7.0, source=source)
    agent = DSL(env=env, batch_size=8 // distributed.world(), seed=5).learn(40)
    assert agent.num_timesteps == 40 and agent.updates == 5
    save(f"{sys.argv[1]}/{distributed.world()}-{distributed.rank()}.safetensors", agent.network.state_dict(), {})
"""
OTHERS = HEAD + """
from regagents.l2o import L2O
from regagents.spac import SPAC
with distributed.group("cpu"):
    digits = gym.make("RegDenseDigits-v0", max_episode_steps=4)
    spac = SPAC(env=digits, lanes=2, batch_size=2, buffer_size=50, learning_starts=4, seed=1).learn(64)
    lungs = gym.make("RegKeypoint2D-v0", size=32, spacing=6.0, observation="dict", source="deformed")
    l2o = L2O(env=lungs, accumulate=1, seed=1, policy_kwargs={"pools": 2}).learn(64)
    weights = {f"spac.{name}": value for name, value in spac.network.state_dict().items()}
    weights |= {f"l2o.{name}": value for name, value in l2o.network.state_dict().items()}
    save(f"{sys.argv[1]}/{distributed.rank()}.safetensors", weights, {})
    print("updates", spac.updates, l2o.updates)
"""


def torchrun(processes: int, *words: str) -> str:
    """Its output; an error where it fails."""
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                           str(processes), *words], capture_output=True, text=True, timeout=280,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def script(folder: Path, text: str) -> str:
    path = folder / "job.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


def test_two_processes_learn_what_one_learns_of_all_their_pairs(tmp_path: Path) -> None:
    job = script(tmp_path, DSL)
    for processes in (1, 2):
        torchrun(processes, job, str(tmp_path))
    alone, *together = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    for name, expected in alone.items():
        torch.testing.assert_close(together[0][name], expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(together[0][name], together[1][name], rtol=0, atol=0)


def test_processes_keep_the_same_weights(tmp_path: Path) -> None:
    told = torchrun(2, script(tmp_path, OTHERS), str(tmp_path))
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    counts = {line for line in told.splitlines() if line.startswith("updates")}
    assert len(counts) == 1 and "updates 0" not in counts.pop()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_the_command_trains_together_and_one_process_writes(tmp_path: Path) -> None:
    torchrun(2, "-m", "regagents", "train", "digits-spac", "--steps", "1280", "--out", str(tmp_path))
    card = json.loads((tmp_path / "digits-spac.json").read_text())
    assert card["samples"] == 1280 and "2 processes" in card["machine"]
    assert (tmp_path / "progress.csv").is_file()
