"""A shipped agent and SimpleITK's tuned mutual information on the same held-out pairs, in one table."""

import sys

from regagents.evaluation.evaluate import evaluate

PAIRS = int(sys.argv[1]) if len(sys.argv) > 1 else 16
report = evaluate("RegRigid2D-v0", ["rigid2d", "initial", "mi"], PAIRS, seed=1_000, refine=True)
print(report.table())
