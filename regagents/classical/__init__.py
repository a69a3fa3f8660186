"""Classical registration of poses behind one contract, :class:`~regagents.classical.common.PoseMethod`.

One code path serves 2D and 3D. A pose is a ``pull_back``: a (D+1, D+1) float64 matrix from world points of the fixed
image to world points of the moving one (mm, ITK order, LPS). Optimisers search for a small motion *before* the given
pose, ``pull_back = initial @ motion``: the initial pose may be any invertible affine map and no Euler angle is near
its singularity. Mutual information is reported as ITK does, negated: lower is better, ``inf`` means no registration.

Determinism: SimpleITK runs on one thread, so on one machine the same call with the same seed returns the same bits.
Another CPU, another number of PyTorch threads (refinement only) or another version of SimpleITK or PyTorch may change
the last digits; from there a search can end elsewhere.
"""

from regagents.classical.common import Result, downsampled
from regagents.classical.elastix import Elastix
from regagents.classical.greedy import Greedy
from regagents.classical.mutual_information import MattesMI, evaluate_metric, multi_start, random_starts
from regagents.classical.refinement import Refinement, refine_pose
from regagents.classical.sift import SiftSimilarity

__all__ = [
    "Elastix",
    "Greedy",
    "MattesMI",
    "Refinement",
    "Result",
    "SiftSimilarity",
    "downsampled",
    "evaluate_metric",
    "multi_start",
    "random_starts",
    "refine_pose",
]
