"""The similarity family: RegSimilarity2D-v0, RegSimilarity3D-v0, the Continuous twin and the normalised variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regenv.data.pairs import PairSource
from regenv.data.sources.landmarked import Landmarked
from regenv.grid import Grid
from regenv.inputs import flag, number
from regenv.parts.distance import LandmarkError, ParameterNorm
from regenv.parts.expert import DistanceDrop
from regenv.parts.observation import OBSERVATIONS
from regenv.parts.reward import SIMILARITIES, DistanceDecrease, NegativeDistance, SimilarityGain
from regenv.parts.start import UniformStart
from regenv.parts.termination import Arrived, Never
from regenv.task import Reward, Task, Termination
from regenv.tasks.arguments import checked_dtype, checked_ranges, named, shape_of, source_for, step_actions
from regenv.transforms.similarity import Similarity

SIZE = {2: 168, 3: 64}
FIELD_MM = 224.0
SCALE_STEP = 0.05
SUCCESS_MM = {2: 4.0, 3: 10.0}
LANDMARKS = {"lattice": {2: 900, 3: 1000}, "between": {2: 900, 3: 1000}, "sift": {2: 100}}
PERTURBATIONS = {"E1": (25.0, 30.0, 0.25), "E2": (30.0, 45.0, 0.25)}
REWARDS: dict[str, Reward] = {"landmarks": NegativeDistance(), "matrix": NegativeDistance(),
                              "gain": DistanceDecrease(), **{name: SimilarityGain(name) for name in SIMILARITIES}}


def similarity(ndim: int, continuous: bool = False, size: int | Sequence[int] | None = None,
               spacing: float | None = None, source: str | Mapping[str, Any] | PairSource = "phantoms",
               observation: str = "pair", obs_dtype: str | None = None, reward: str = "landmarks",
               landmarks: str = "lattice", perturbation: str = "E1", whole: bool | None = None,
               ranges: Sequence[float] | None = None, step_sizes: Sequence[float] = (1.0,), near: float = 0.0,
               near_scale: float = 0.15, stop: str = "arrived", success_mm: float | None = None,
               max_episode_steps: int = 500) -> Task:
    """Multimodal similarity registration as a Markov decision process (Sun et al. 2018).

    ## Description
    A moving image has been shifted, turned and scaled. Step by step the agent moves it back onto the fixed image of
    another modality. The pose U = (tx, ty, alpha, s) (eq. 3; 3D: tx, ty, tz, a rotation vector, s) is the push-forward
    that is left of the misalignment about the image's centre: millimetres, degrees, and s = 1 at alignment.

    ## Action Space
    `Discrete(8)` in 2D, `Discrete(14)` in 3D; `Box(-1, 1, (4,) | (7,), float32)` for the Continuous ids, whose action
    changes all parameters at once, each by at most one unit. Actions are composed from the left, T <- a o T: rotation
    and scaling act about the image's centre; the step in s is additive.

    | Num | Action | Unit |
    |---|---|---|
    | 2i | raise parameter i | 1 pixel, 1 degree or 0.05 |
    | 2i + 1 | lower parameter i | 1 pixel, 1 degree or 0.05 |

    ## Observation Space
    `observation="pair"`: (fixed, warped), channel first; uint8 [0, 255] in 2D, float32 [0, 1] in 3D (`obs_dtype=`
    chooses). `"difference"`: fixed - warped.

    ## Rewards
    D is the mean landmark error in pixels. `reward="landmarks"`: -D, and 10 on arrival (eq. 4; unbounded, returns grow
    with the episode). `"gain"` (the Normalized id): the decrease of D, and 10 on arrival. `"matrix"` (the ablation): as
    "landmarks" with the parameters' norm (t / s in pixels, degrees, (s - 1) / 0.05) for D. A similarity's name
    ("mi", "ncc", "lncc", "ssim", "mse"): ten times its gain.

    ## Starting State
    `perturbation="E1"`: translations in +-25 pixels, rotations in +-30 degrees, s in 0.75 to 1.25. `"E2"`: +-30
    pixels, +-45 degrees, the same s. On the paper's grid of 1 pixel, 1 degree, 0.05 (`whole=True`, default for
    Discrete ids), or continuous (`whole=False`). `ranges=` sets other half-widths (pixels, degrees, s). A start that
    already is a success is drawn anew, unless `near=` asks for starts near the solution.

    ## Episode End
    ### Termination
    D < 1 (eq. 4), or no action lowers D: from poses off the grid the first rule alone may be out of reach, since half
    a step in s moves the corners by 3 pixels. `stop="never"` switches both off.
    ### Truncation
    After 500 steps; `max_episode_steps=` of `gym.make` and `gym.make_vec` sets another.

    ## Arguments
    `size` pixels per axis (168 in 2D, 64 in 3D); `spacing` mm of a pixel (field of view 224 mm); `source` "phantoms",
    "slices" (real, T1, T2 and CT; `regenv data get mni2009c`), "files", or a PairSource; `landmarks` "lattice" (900
    points in 2D, 1000 in 3D), "between" (the middles of its cells, to measure where no reward was given) or "sift" (2D,
    needs OpenCV); `success_mm` the largest landmark error of `info["is_success"]` (4 mm in 2D, three pixels; 10 mm in
    3D). `info["tre"]` is in mm; divide by `spacing` for pixels. `info["score"]` is what the reward is made of: -D, or
    ten times the similarity. `info["q_star"]` (privileged) is the decrease of D by every
    action: its argmax is the paper's supervised action.

    ```python
    gym.make("RegSimilarity2D-v0", source={"name": "slices", "subjects": ["mni2009c"]}, perturbation="E2")
    ```

    ## Version History
    * v0: first release.
    """
    shape = shape_of(SIZE[ndim] if size is None else size, ndim)
    pixel = FIELD_MM / max(shape) if spacing is None else number("spacing", spacing, positive=True)
    moves = Similarity(ndim, pixel, SCALE_STEP)
    turns = len(moves.names) - ndim - 1
    units = (pixel,) * ndim + (1.0,) * turns + (SCALE_STEP,)
    if ranges is None:
        shift, degrees, scale = named("perturbation", perturbation, PERTURBATIONS)
        ranges = [shift] * ndim + [degrees] * turns + [scale]
    widths = checked_ranges(ranges, moves.names)
    if widths[-1] >= 1:
        raise ValueError(f"ranges is {ranges}; the last one, of s - 1, must be below 1.")
    earned = named("reward", reward, REWARDS)
    counts = named("landmarks", landmarks, LANDMARKS)
    stops: dict[str, Termination] = {"arrived": Arrived(1.0), "never": Never()}
    return Task(
        source=Landmarked(source_for(source, ndim), landmarks, counts.get(ndim, 0)),
        grid=Grid.centered(shape, pixel),
        transform=moves,
        actions=step_actions(continuous, units, step_sizes),
        start=UniformStart(tuple(width * pixel for width in widths[:ndim]) + widths[ndim:], near, near_scale,
                           not continuous if whole is None else flag("whole", whole), units),
        distance=ParameterNorm() if reward == "matrix" else LandmarkError(pixel),
        observation=named("observation", observation, OBSERVATIONS)(checked_dtype(obs_dtype, ndim)),
        reward=earned,
        termination=named("stop", stop, stops),
        expert=DistanceDrop(per_unit=False),
        max_episode_steps=max_episode_steps,
        success_mm=SUCCESS_MM[ndim] if success_mm is None else success_mm,
    )
