"""The key-point family: RegKeypoint2D-v0 and RegKeypoint3D-v0."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from regenv.data.pairs import PairSource
from regenv.inputs import number
from regenv.parts.observation import OBSERVATIONS, DictObservation
from regenv.parts.reward import SIMILARITIES, LandmarkGain, SimilarityGain
from regenv.parts.start import ZeroStart
from regenv.parts.termination import Never
from regenv.task import Observation, Reward, Task
from regenv.tasks.arguments import checked_dtype, field_actions, grid_of, named, shape_of, source_for
from regenv.transforms.dense import UPDATES, Dense

SIZE = {2: 128, 3: 64}
FIELD_MM = 320.0
SUCCESS_MM = 2.0


def keypoint(ndim: int, size: int | Sequence[int] | None = None, spacing: float | Sequence[float] | None = None,
             source: str | Mapping[str, Any] | PairSource = "lungs", observation: str = "pair",
             obs_dtype: str | None = None, reward: str = "tre", update: str = "replace",
             max_displacement: float | None = None, control_grid: Sequence[int] | None = None,
             success_mm: float = SUCCESS_MM, max_episode_steps: int = 8) -> Task:
    """Iterative dense registration with key-points as a Markov decision process (the learned optimiser's).

    ## Description
    Two scans of one breathing patient. In every step the agent states a displacement for every voxel, as an optimiser
    does that refines its estimate; the original moving image is warped once by what has accumulated. Corresponding
    key-points in both scans say how far the estimate is off.

    ## Action Space
    `Box(-max_displacement, max_displacement, (D, *shape), float32)`: voxels of the fixed grid, array-axis order; larger
    values are clipped. `update="replace"`: the action is the new displacement; `"add"`: it is added to the present one;
    `"compose"`: it displaces what is seen (as in the RegDense ids). With `control_grid=(8, 8)`: as of the RegDense ids.

    ## Observation Space
    `observation="pair"`: (fixed, warped), channel first; uint8 [0, 255] in 2D, float32 [0, 1] in 3D (`obs_dtype=`
    chooses). `"difference"`: fixed - warped. `"dict"`: fixed, moving and warped, the displacement (D, *shape), voxels,
    float32, and fixed_mask and moving_mask, uint8, 1 in the labelled organ, the lungs.

    ## Rewards
    `reward="tre"`: the decrease of the key-points' mean distance from where they belong, mm. A similarity's name
    ("lncc", "ncc", "mi", "ssim", "mse"): ten times its gain.

    ## Starting State
    No displacement.

    ## Episode End
    ### Termination
    Never.
    ### Truncation
    After 8 steps; `max_episode_steps=` of `gym.make` and `gym.make_vec` sets another.

    ## Arguments
    `size` voxels per axis (128 in 2D, 64 in 3D), `spacing` mm (field of view 320 mm); `source` "lungs", or any with
    landmarks; `max_displacement` voxels (a quarter of the longest axis); `success_mm` the largest error of
    `info["is_success"]` (2 mm; most episodes start at 3 to 18 mm). `info["score"]` is what the reward is made of: -TRE,
    or ten times the similarity. `privileged=True` adds the supervision to
    `info`: "keypoints" (N, D) in voxels of the fixed image and "keypoint_targets" (N, D) in voxels of the moving one,
    array-axis order.

    ```python
    gym.make("RegKeypoint3D-v0", size=48, observation="dict", privileged=True)
    ```

    ## Version History
    * v0: first release.
    """
    shape = shape_of(SIZE[ndim] if size is None else size, ndim)
    bound = max(shape) / 4 if max_displacement is None else number("max_displacement", max_displacement,
                                                                   positive=True)
    named("update", update, UPDATES)
    observations: dict[str, Callable[[str], Observation]] = {
        **OBSERVATIONS, "dict": partial(DictObservation, masks=True)}
    rewards: dict[str, Reward] = {"tre": LandmarkGain(), **{name: SimilarityGain(name) for name in SIMILARITIES}}
    return Task(
        source=source_for(source, ndim),
        grid=grid_of(shape, spacing, FIELD_MM),
        transform=Dense(ndim, update),
        actions=field_actions(shape, bound, control_grid),
        start=ZeroStart(shape),
        distance=None,
        observation=named("observation", observation, observations)(checked_dtype(obs_dtype, ndim)),
        reward=named("reward", reward, rewards),
        termination=Never(),
        expert=None,
        max_episode_steps=max_episode_steps,
        success_mm=success_mm,
    )
