"""The dense family: RegDense2D-v0, RegDense3D-v0 and RegDenseDigits-v0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regenv.data.pairs import PairSource
from regenv.data.sources.clustered import Clustered
from regenv.inputs import number, whole
from regenv.parts.observation import OBSERVATIONS, DictObservation
from regenv.parts.reward import SIMILARITIES, DiceGain, SimilarityGain
from regenv.parts.start import ZeroStart
from regenv.parts.termination import Never, ScoreReached
from regenv.task import Reward, Task, Termination
from regenv.tasks.arguments import checked_dtype, field_actions, grid_of, named, shape_of, source_for
from regenv.transforms.dense import Dense

SIZE = {2: 128, 3: 128}
FIELD_MM = {2: 192.0, 3: 192.0}
REACHED = 0.98
SUCCESS_MM = 1.5


def dense(ndim: int, size: int | Sequence[int] | None = None, spacing: float | Sequence[float] | None = None,
          source: str | Mapping[str, Any] | PairSource | None = None, observation: str = "pair",
          obs_dtype: str | None = None, reward: str = "clusters", reward_scale: float = 1.0,
          terminal_bonus: float = 0.0, clusters: int = 3, max_displacement: float = 3.0,
          control_grid: Sequence[int] | None = None, stop: str = "never", success_mm: float = SUCCESS_MM,
          max_episode_steps: int = 20) -> Task:
    """Step-wise dense deformable registration as a Markov decision process (Luo et al. 2022).

    ## Description
    Every step the agent gives a displacement for every voxel. It is composed with what has accumulated, and the
    original moving image is warped once by the whole: no warp of a warp.

    ## Action Space
    `Box(-max_displacement, max_displacement, (D, *shape), float32)`: voxels of the fixed grid, array-axis order; larger
    values are clipped. With `control_grid=(8, 8)`: `Box(-1, 1, (D, 8, 8), float32)`, coefficients of a cubic B-spline
    in units of `max_displacement`, few enough for off-the-shelf agents.

    ## Observation Space
    `observation="pair"`: (fixed, warped), channel first; uint8 [0, 255] in 2D, float32 [0, 1] in 3D (`obs_dtype=`
    chooses). `"difference"`: fixed - warped. `"dict"`: fixed, moving, warped (1, *shape) and displacement (D, *shape).

    ## Rewards
    `reward_scale` times the gain of a score. `reward="clusters"`: the mean Dice of K-means clusters of the intensities
    (eq. 5; 3 of them, found once per pair, sorted by their centroids). `"dice"`: of true labels, where the source has
    some. A similarity's name ("ssim", "lncc", "ncc", "mi", "mse"). `terminal_bonus` is added on arrival.

    ## Starting State
    No displacement.

    ## Episode End
    ### Termination
    Never; with `stop="score"`, or a terminal bonus, once the score reaches 0.98 (of 1).
    ### Truncation
    After 20 steps; `max_episode_steps=` of `gym.make` and `gym.make_vec` sets another.

    ## Arguments
    `size` voxels per axis (128), `spacing` mm; `source` "deformed" (phantoms with a known smooth deformation), "files",
    "brains", "livers", "digits" (28 x 28, what `RegDenseDigits-v0` shows; its reward is "dice" of the digit), "folder",
    or a PairSource. `info["score"]` is what the reward is made of: `reward_scale` times the Dice of the clusters or the
    labels, or the similarity. `info["dice"]` is of the true labels, where the source has some; `info["tre"]` of its
    landmarks. `success_mm` is the largest error of `info["is_success"]`: 1.5 mm, a voxel in 2D and 3D; most
    episodes start at 2.1 to 7 mm.

    ```python
    gym.make("RegDense2D-v0", control_grid=(8, 8), reward="lncc")
    ```

    ## Version History
    * v0: first release.
    """
    shape = shape_of(SIZE[ndim] if size is None else size, ndim)
    number("max_displacement", max_displacement, positive=True)
    number("reward_scale", reward_scale)
    number("terminal_bonus", terminal_bonus)
    pairs = source_for("deformed" if source is None else source, ndim)
    rewards: dict[str, Reward] = {
        "clusters": DiceGain(reward_scale, terminal_bonus, of="clusters"),
        "dice": DiceGain(reward_scale, terminal_bonus),
        **{name: SimilarityGain(name, reward_scale, terminal_bonus) for name in SIMILARITIES}}
    reached = ScoreReached(REACHED * reward_scale)
    stops: dict[str, Termination] = {"never": reached if terminal_bonus else Never(), "score": reached}
    return Task(
        source=Clustered(pairs, whole("clusters", clusters, least=2)) if reward == "clusters" else pairs,
        grid=grid_of(shape, spacing, FIELD_MM[ndim]),
        transform=Dense(ndim),
        actions=field_actions(shape, max_displacement, control_grid),
        start=ZeroStart(shape),
        distance=None,
        observation=named("observation", observation, {**OBSERVATIONS, "dict": DictObservation})(
            checked_dtype(obs_dtype, ndim)),
        reward=named("reward", reward, rewards),
        termination=named("stop", stop, stops),
        expert=None,
        max_episode_steps=max_episode_steps,
        success_mm=success_mm,
    )
