"""Fit the verdict to labelled registrations and write ``regagents/registration/verdict.json``.

    python benchmarks/verdict_pairs.py            # first: registers the pairs and keeps their evidence
    python benchmarks/verdict_fit.py              # then: fits on the calibration split, and writes the page anew

A logistic regression with a ridge; its features and strength are chosen by cross-validation that leaves out one kind
after the other. Only the calibration split is looked at. "aligned" begins where at most one in 20 of the calibration's
registrations would be a silent failure, by predictions of models that had not seen its kind; below "doubtful" nine of
ten have failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import verdict_pairs
from common import machine, publish
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.preprocessing import StandardScaler

from regagents.registration import verdict
from regenv.atomic import atomic

AGAINST = ("mirror", "stretch")     # what is larger for wrong poses; all else is smaller
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SILENT, FAILED = 0.05, 0.9
WORTH = 0.001   # rise of the AUC that a feature must bring
SEARCH = ("lead", "share")  # what depends on how was searched: with --init or another agent it means something else
NAMES = tuple(name for name in verdict.FEATURES if name not in SEARCH)


def registrations(ledger: Path) -> list[dict[str, Any]]:
    """Rows of both splits."""
    return [json.loads(line)["result"] for line in ledger.read_text().splitlines()[1:]]


@dataclass(frozen=True)
class Data:
    """Evidence (N, F) of the features, scaled; which registrations are right (N,); and their kinds (N,)."""

    values: np.ndarray
    right: np.ndarray
    kinds: np.ndarray

    def unseen(self, features: Sequence[int], strength: float) -> np.ndarray:
        """Probabilities (N,) by models that have not seen a registration's kind."""
        return cross_val_predict(LogisticRegression(C=strength, max_iter=1000), self.values[:, features], self.right,
                                 groups=self.kinds, cv=LeaveOneGroupOut(), method="predict_proba")[:, 1]

    def model(self, features: Sequence[int], strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=1000).fit(self.values[:, features], self.right)

    def sound(self, features: Sequence[int], strength: float) -> bool:
        """Whether every feature speaks in the direction that it means."""
        signs = [-1 if NAMES[feature] in AGAINST else 1 for feature in features]
        return bool((self.model(features, strength).coef_[0] * signs > 0).all())

    def chosen(self) -> tuple[list[int], float]:
        """Features, added one by one while kinds that were not seen are told better, and the ridge's strength."""
        best: tuple[list[int], float] = ([], 1.0)
        area = 0.0
        while True:
            tried = [([*best[0], feature], strength) for feature in range(len(NAMES)) if feature not in best[0]
                     for strength in STRENGTHS if self.sound([*best[0], feature], strength)]
            areas = [float(roc_auc_score(self.right, self.unseen(*one))) for one in tried]
            if not areas or max(areas) < area + WORTH:
                return best
            best, area = tried[int(np.argmax(areas))], max(areas)


def fit(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The model as verdict.json holds it."""
    scaler = StandardScaler()
    values = scaler.fit_transform([verdict.weighed(row["verdict"]["evidence"], NAMES) for row in rows])
    kinds = np.unique([f"{row['kind']} {row['anatomy']}" for row in rows], return_inverse=True)[1]
    data = Data(values, np.array([row["right"] for row in rows]), kinds)
    features, strength = data.chosen()
    told, wrong = data.unseen(features, strength), ~data.right
    limits = np.unique(np.append(told, 1.0))
    aligned = next(float(limit) for limit in limits if (wrong & (told >= limit)).mean() <= SILENT and limit >= 0.5)
    below = [float(limit) for limit in limits
             if limit <= aligned and (told < limit).any() and wrong[told < limit].mean() >= FAILED]
    model = data.model(features, strength)
    return {"features": [NAMES[feature] for feature in features], "mean": scaler.mean_[features].tolist(),
            "deviation": scaler.scale_[features].tolist(), "weights": model.coef_[0].tolist(),
            "intercept": float(model.intercept_[0]), "aligned": aligned, "doubtful": max(below, default=aligned),
            "registrations": len(rows), "right": int(data.right.sum()),
            "auc_of_unseen_kinds": float(roc_auc_score(data.right, told)), "strength": strength}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledger", type=Path, default=Path(__file__).parent / "results" / "verdict_pairs.jsonl")
    arguments = parser.parse_args(argv)
    rows = registrations(arguments.ledger)
    command = " ".join(["python benchmarks/verdict_fit.py", *(sys.argv[1:] if argv is None else argv)])
    model = fit([row for row in rows if row["split"] == "calibration" and row["verdict"]])
    model |= {"command": command, "date": date.today().isoformat()}
    with atomic(Path(verdict.__file__).with_suffix(".json")) as path:
        path.write_text(json.dumps(model, indent=1) + "\n")
    verdict.fitted.cache_clear()
    print(json.dumps(model, indent=1))

    def judge(found: dict[str, float], _: int) -> tuple[str, float]:
        judged = verdict.verdict(found)
        return judged["state"], judged["probability"]

    told = verdict_pairs.judged(rows, judge)
    out = arguments.ledger.with_suffix("")
    text = verdict_pairs.page(told, len(rows) - len(told), command, "auto")
    splits = {split: [row for row in told if row["split"] == split] for split in verdict_pairs.SPLITS}
    publish(out, text, {"command": command, "machine": machine(),
                        **{split: verdict_pairs.summary(those) for split, those in splits.items()}})
    verdict_pairs.draw(out.with_suffix(".png"), told)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
