"""The user says how many threads there are: nothing here starts numba's threads, or changes torch's or SimpleITK's."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from regagents.common.threads import one_thread
from regenv.ops import features, warp
from regenv.ops.kernels import threads

LARGE = (104, 102, 100)  # voxels: more than ``threads.SERIAL_BELOW``
PROGRAM = """
import json, os, sys
import torch, SimpleITK as sitk

def told():
    return [torch.get_num_threads(), torch.get_num_interop_threads(),
            sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(),
            os.environ.get("OMP_NUM_THREADS"), os.environ.get("NUMBA_NUM_THREADS")]

counts, stages = [], {}
def stage(name):
    stages[name] = told()

stage("start")
import gymnasium as gym
import regenv, regagents.agents
from regenv.ops import overlap, warp
from regenv.ops.kernels import cpu
stage("import")
env = gym.make("RegRigid2D-v0", size=32)
env.reset(seed=0)
env.step(0)
stage("single")
env = gym.make_vec("RegSDM2D-v0", num_envs=2)
env.reset(seed=0)
env.step(env.action_space.sample())
stage("batch")
before = len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 0
image = torch.rand(1, 1, 104, 102, 100)
field = torch.rand(1, 3, 104, 102, 100)
warp.warp_dense(image, field)
warp.warp_affine(image, torch.eye(4)[None], image.shape[2:])
warp.fused_warp(image, image, torch.eye(4)[None], None, "pair")
cpu.vjp(image, image, None, field, False, True, True)
overlap.dice((image > 0.5).short(), (image > 0.4).short(), [1])
stage("kernels")
started = len(os.listdir("/proc/self/task")) - before if sys.platform == "linux" else 0
import numba
from numba.np.ufunc import parallel
launched = parallel._is_initialized
print(json.dumps({"stages": stages, "started": started, "launched": launched,
                  "numba": [numba.get_num_threads(), numba.config.NUMBA_NUM_THREADS]}))
"""


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("layer", ["omp", "tbb", "workqueue"])
def test_nothing_changes_the_threads_of_the_process(layer: str, number: int) -> None:
    """From the import to the largest kernel, with OMP_NUM_THREADS alone."""
    import json

    if layer == "tbb" and importlib.util.find_spec("numba.np.ufunc.tbbpool") is None:
        pytest.skip("numba has no TBB here")
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=240, check=False,
                          env={**environment, "NUMBA_THREADING_LAYER": layer, "OMP_NUM_THREADS": str(number)})
    if layer == "tbb" and "No threading layer could be loaded" in done.stderr:
        pytest.skip("the TBB library is not installed")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["stages"]["start"][0] == number
    assert all(stage == told["stages"]["start"] for stage in told["stages"].values()), told["stages"]
    assert not told["launched"]
    assert told["numba"][0] == told["numba"][1]
    assert told["started"] == (0 if number == 1 else pytest.approx(number - 1, abs=1)), "threads of large kernels"


@pytest.fixture
def fresh_pool() -> Iterator[None]:
    """No threads of earlier tests."""
    threads._pool().shutdown()
    threads._pool.cache_clear()
    yield
    threads._pool().shutdown()
    threads._pool.cache_clear()


def kernel_threads() -> int:
    return sum(thread.name.startswith("regenv-kernel") for thread in threading.enumerate())


@pytest.mark.parametrize(("number", "shape", "helpers"), [(1, LARGE, 0), (2, LARGE, 1), (3, LARGE, 2),
                                                          (2, (64, 64, 64), 0)])
def test_a_kernel_takes_as_many_threads_as_torch(number: int, shape: tuple[int, ...], helpers: int,
                                                 fresh_pool: None) -> None:
    torch.set_num_threads(number)
    warp.warp_affine(torch.rand(1, 1, *shape), torch.eye(4)[None], shape)
    assert torch.get_num_threads() == number
    assert kernel_threads() <= helpers
    assert (kernel_threads() > 0) == (helpers > 0)


@pytest.mark.parametrize("chunks", [2, 3, 7])
def test_results_do_not_depend_on_the_threads(chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SERIAL_BELOW", 0)
    image, field = torch.rand(2, 3, 12, 40, 50), torch.rand(2, 3, 12, 40, 50) * 4

    def found() -> list[torch.Tensor]:
        where = torch.eye(4).repeat(2, 1, 1)
        bent = field.clone().requires_grad_()
        shown = image.clone().requires_grad_()
        warp.warp_dense(shown, bent).square().sum().backward()
        return [warp.warp_through(image, where, field, image.shape[2:]), warp.compose(field, field),
                *warp.fused_warp(image, image, where, field, "pair"), shown.grad, bent.grad,
                warp.warp_through((image * 9).short(), where, field, image.shape[2:], "nearest"),
                features.costs(image, image, field, torch.rand(5, 3, generator=torch.Generator().manual_seed(0)))]

    alone = found()
    torch.set_num_threads(chunks)
    assert all(torch.equal(a, b) for a, b in zip(alone, found(), strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    torch.set_num_threads(2)
    image = torch.rand(1, 1, *LARGE)
    warp.warp_affine(image, torch.eye(4)[None], LARGE)
    child = os.fork()
    if not child:
        warp.warp_affine(image, torch.eye(4)[None], LARGE)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_one_thread_puts_back_what_it_found() -> None:
    import SimpleITK as sitk

    torch.set_num_threads(2)
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    with pytest.raises(KeyError), one_thread():
        assert (torch.get_num_threads(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()) == (1, 1)
        raise KeyError
    assert (torch.get_num_threads(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()) == (2, before)
