"""The family of statistical deformation models: RegSDM2D-v0, RegSDM3D-v0 and their Continuous twins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from regenv.data.banks.ground_truth import MODELS
from regenv.data.banks.pelvises import FRAMES
from regenv.data.pairs import PairSource
from regenv.inputs import flag, number
from regenv.parts.distance import TargetNorm
from regenv.parts.expert import DistanceDrop
from regenv.parts.guard import FuzzyControl
from regenv.parts.observation import OBSERVATIONS
from regenv.parts.reward import SIMILARITIES, DiceGain, DistanceDecrease, SimilarityGain
from regenv.parts.start import OnTheWay
from regenv.parts.termination import Never
from regenv.task import Expert, Reward, Task
from regenv.tasks.arguments import checked_dtype, named, source_for, step_actions
from regenv.transforms.deformation_model import DeformationModel
from regenv.transforms.sdm import SDM

INCREMENT = 0.2   # of a mode's mean absolute amplitude in training
SUCCESS_MM = {2: 1.5, 3: 3.0}
REWARDS: dict[str, Reward] = {"distance": DistanceDecrease(bonus=0.0), "dice": DiceGain(),
                              **{name: SimilarityGain(name) for name in SIMILARITIES}}


def sdm(ndim: int, continuous: bool = False, source: str | Mapping[str, Any] | PairSource = "organs",
        model: str | Path | None = None, observation: str = "pair", obs_dtype: str | None = None,
        reward: str = "distance", fuzzy: bool = True, k: float = 1.5, increment: float = INCREMENT,
        step_sizes: Sequence[float] = (1.0,), targets: str = "drop", wander: float = 0.0,
        stray: float = 0.3, success_mm: float | None = None, max_episode_steps: int = 200) -> Task:
    """Organ-focused deformable registration as a Markov decision process (Krebs et al. 2017).

    ## Description
    The images show one organ of two subjects, or of one subject deformed twice. The agent moves the moving image by the
    modes of a statistical deformation model: the principal components of cubic B-spline deformations between training
    subjects. The pose theta holds their amplitudes in millimetres, zero at the start.

    ## Action Space
    `Discrete(30)` in 2D (15 modes), `Discrete(50)` in 3D (25); `Box(-1, 1, (15,) | (25,), float32)` for the Continuous
    ids, whose action changes all amplitudes at once, each by at most one increment.

    | Num | Action | Unit |
    |---|---|---|
    | 2m | raise mode m | `increment` times the mode's mean absolute amplitude in training |
    | 2m + 1 | lower mode m | the same |

    Fuzzy action control (section 2.2): a change that would bring an amplitude to f beyond k = 1.5 of its standard
    deviations is let through with probability exp(k^2 / 2 - (f / sigma)^2 / 2), else it has no effect. The numbers are
    drawn before the action is chosen: `info["action_mask"]` (and `action_masks()` of the single environment, for
    sb3-contrib's MaskablePPO) shows which actions will be let through. `fuzzy=False` switches it off.

    ## Observation Space
    `observation="pair"`: (fixed, warped), channel first; uint8 [0, 255] (2, 100, 100) in 2D, float32 [0, 1]
    (2, 20, 75, 75) in 3D (`obs_dtype=` chooses). `"difference"`: fixed - warped.

    ## Rewards
    `reward="distance"`: the decrease of |theta_GT - theta| in mm (eq. 1); 0 where theta_GT is unknown, as on real
    pairs. `"dice"`: the gain of the organ's Dice. A similarity's name ("mi", "ncc", "lncc", "ssim", "mse"): ten times
    its gain.

    ## Starting State
    theta = 0. For training, `wander=` starts that share of the episodes somewhere on the straight line to the target,
    and up to `stray` standard deviations beside it: where an agent may get by wrong actions.

    ## Episode End
    ### Termination
    Never.
    ### Truncation
    After 200 steps; `max_episode_steps=` of `gym.make` and `gym.make_vec` sets another.

    ## Arguments
    `source` "organs" (33 synthetic training subjects, deformed when drawn), `{"name": "organs", "split": "test"}` (8
    others, undeformed), or a PairSource on the model's grid; `model` a file of `regenv sdm`. `info["tre"]` is the mean
    distance of the organ's surface points from where the true deformation puts them, which is the composition that made
    the images and not its projection on the modes, so that theta_GT itself leaves about 1.5 mm in 2D and 2 mm in 3D;
    for undeformed subjects, from the other organ's corresponding points. `success_mm` is the largest `tre` of
    `info["is_success"]` (1.5 mm in 2D, 3 mm in 3D). `info["dice"]` is the organ's, `info["score"]`
    what the reward is made of: -|theta_GT - theta|, the Dice, or ten times the similarity. `info["q_star"]`
    (privileged) is eq. 1 for every action, or with `targets="unit"` that per mm of the action's step.

    ```python
    gym.make("RegSDM2D-v0", source={"name": "organs", "split": "test"}, fuzzy=False)
    ```

    ## Version History
    * v0: first release.
    """
    deformations = load_model(str(MODELS / f"organ{ndim}d.safetensors" if model is None else model))
    if len(deformations.shape) != ndim:
        raise ValueError(f"model {model} is {len(deformations.shape)}D; this environment needs a {ndim}D one.")
    units = tuple((number("increment", increment, positive=True) * deformations.mean_amplitudes).tolist())
    deviations = tuple(deformations.deviations.tolist())
    experts: dict[str, Expert] = {"drop": DistanceDrop(per_unit=False), "unit": DistanceDrop()}
    return Task(
        source=source_for(source, ndim),
        grid=FRAMES[ndim],
        transform=SDM(deformations),
        actions=step_actions(continuous, units, step_sizes),
        start=OnTheWay(deviations, wander, stray),
        distance=TargetNorm(),
        observation=named("observation", observation, OBSERVATIONS)(checked_dtype(obs_dtype, ndim)),
        reward=named("reward", reward, REWARDS),
        termination=Never(),
        expert=named("targets", targets, experts),
        max_episode_steps=max_episode_steps,
        success_mm=SUCCESS_MM[ndim] if success_mm is None else success_mm,
        guard=FuzzyControl(deviations, number("k", k, positive=True)) if flag("fuzzy", fuzzy) else None,
    )


@lru_cache(maxsize=8)
def load_model(path: str) -> DeformationModel:
    """A deformation model, read once."""
    return DeformationModel.load(path)
