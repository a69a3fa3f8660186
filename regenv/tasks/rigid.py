"""The rigid family: RegRigid2D-v0, RegRigid3D-v0, their Continuous twins and the geometric variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regenv.data.pairs import PairSource
from regenv.inputs import flag, number
from regenv.parts.distance import ParameterNorm
from regenv.parts.expert import DistanceDrop, GreedyQ
from regenv.parts.observation import OBSERVATIONS
from regenv.parts.reward import REWARDS
from regenv.parts.start import UniformStart
from regenv.parts.termination import Arrived, Never
from regenv.task import Expert, Task, Termination
from regenv.tasks.arguments import (
    checked_dtype,
    checked_ranges,
    checked_steps,
    grid_of,
    named,
    shape_of,
    source_for,
    step_actions,
)
from regenv.transforms.rigid import Rigid, RigidMotion

MOTIONS: dict[str, type[Rigid]] = {"parameters": Rigid, "disentangled": RigidMotion}
SIZE = {2: 128, 3: 64}
FIELD_MM = {2: 256.0, 3: 224.0}
RANGE_MM, RANGE_DEGREES = 30.0, 30.0
SUCCESS_MM = {2: 3.0, 3: 10.0}


def rigid(ndim: int, continuous: bool = False, size: int | Sequence[int] | None = None,
          spacing: float | Sequence[float] | None = None, source: str | Mapping[str, Any] | PairSource = "phantoms",
          observation: str = "difference", obs_dtype: str | None = None, reward: str = "distance",
          motion: str = "parameters", step_sizes: Sequence[float] = (1.0,), ranges: Sequence[float] | None = None,
          near: float = 0.0, near_scale: float = 0.15, whole: bool = False, gamma: float = 0.9,
          targets: str | None = None, stop: str = "arrived",
          success_mm: float | None = None, max_episode_steps: int = 200) -> Task:
    """Rigid registration as a Markov decision process (Liao et al. 2017).

    ## Description
    A moving image has been thrown out of place by a random rigid motion. Step by step the agent moves it back onto the
    fixed image. The pose v = (tx, ty[, tz], rx, ry, rz | theta) holds the parameters of Tg o T^-1 (eq. 1), millimetres
    and degrees: zero at perfect alignment.

    ## Action Space
    `Discrete(6)` in 2D, `Discrete(12)` in 3D; `Box(-1, 1, (3,) | (6,), float32)` for the Continuous ids, whose action
    changes all parameters at once, each by at most one unit.

    | Num | Action | Unit |
    |---|---|---|
    | 2i | raise parameter i | 1 mm or 1 degree |
    | 2i + 1 | lower parameter i | 1 mm or 1 degree |

    With several `step_sizes` the same 2P actions follow once per size. `motion="disentangled"` moves the warped image
    along the fixed axes and turns it about its own centre; the pose is then its translation and rotation vector.

    ## Observation Space
    `observation="difference"`: fixed - warped, one channel (the paper's). `"pair"`: (fixed, warped), two channels.
    Channel first. 2D ids are uint8 [0, 255] for SB3's CnnPolicy; 3D ids are float32 in [-1, 1] or [0, 1]
    (`obs_dtype=` chooses).

    ## Rewards
    `reward="distance"`: D(v) - D(v'), D the L2 norm of v (eq. 4), plus 10 on arrival (eq. 3). A similarity's name
    ("mi", "ncc", "lncc", "ssim", "mse"): ten times its gain, which needs no truth.

    ## Starting State
    Every parameter uniform in +-30 mm or +-30 degrees; `source="spine"` widens z to +-150 mm. `ranges=` sets others.
    A start that already is a success is drawn anew. `near=` draws that share of the starts within `near_scale` of the
    ranges, successes among them; `whole=True` rounds to whole units.

    ## Episode End
    ### Termination
    D <= 0.5, or no action lowers D. The paper states the first rule only; unit steps from fractional poses end with
    every |v_i| <= 1/2 and D up to sqrt(6)/2, so the second one is needed. `stop="never"` switches both off.
    ### Truncation
    After 200 steps (60 for the geometric variant); `max_episode_steps=` of `gym.make` and `gym.make_vec` sets another.

    ## Arguments
    `size` voxels per axis (128 in 2D, 64 in 3D) or a shape in array order; `spacing` mm; `source` "phantoms",
    "spine", "heads" or a PairSource; `gamma`, `targets` ("q" or "drop") of the privileged `info["q_star"]`;
    `success_mm` the largest landmark error `info["tre"]` of `info["is_success"]`: 10 mm in 3D, as in the paper; 3 mm in
    2D, where one start in eighty lies within 10 mm. `info["score"]` is what the reward is made of, -D or the
    similarity.

    ```python
    gym.make("RegRigid3D-v0", size=32, spacing=6.5, source="heads", observation="pair")
    ```

    ## Version History
    * v0: first release.
    """
    moves = named("motion", motion, MOTIONS)(ndim)
    shape = shape_of(SIZE[ndim] if size is None else size, ndim)
    if ranges is None:
        ranges = [RANGE_MM] * ndim + [RANGE_DEGREES] * (len(moves.names) - ndim)
        if ndim == 3 and (source["name"] if isinstance(source, Mapping) else source) == "spine":
            ranges[2] = 150.0
    sizes = checked_steps(step_sizes)
    plain = motion == "parameters" and sizes == (1.0,)
    if targets == "q" and not plain:
        raise ValueError("targets is 'q'; it is defined for unit steps of parameters only, use targets='drop'.")
    experts: dict[str, Expert] = {"q": GreedyQ(number("gamma", gamma, 0, 1)), "drop": DistanceDrop()}
    stops: dict[str, Termination] = {"arrived": Arrived(), "never": Never()}
    return Task(
        source=source_for(source, ndim),
        grid=grid_of(shape, spacing, FIELD_MM[ndim]),
        transform=moves,
        actions=step_actions(continuous, (1.0,) * len(moves.names), sizes),
        start=UniformStart(checked_ranges(ranges, moves.names), near, near_scale,
                           flag("whole", whole)),
        distance=ParameterNorm(),
        observation=named("observation", observation, OBSERVATIONS)(checked_dtype(obs_dtype, ndim)),
        reward=named("reward", reward, REWARDS),
        termination=named("stop", stop, stops),
        expert=named("targets", targets or ("q" if plain else "drop"), experts),
        max_episode_steps=max_episode_steps,
        success_mm=SUCCESS_MM[ndim] if success_mm is None else success_mm,
    )
