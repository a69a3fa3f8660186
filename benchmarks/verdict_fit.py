"""Fit the verdict to labelled registrations and write ``regagents/registration/verdict.json``.

    python benchmarks/verdict_pairs.py            # first: registers the pairs and keeps their evidence
    python benchmarks/verdict_fit.py              # then: fits on the calibration split, and writes the page anew

A logistic regression with a ridge, its strength chosen by cross-validation over the anatomies and kinds. Only the
calibration split is looked at. "aligned" begins where at most one in 20 of the calibration's registrations would be a
silent failure, by predictions of models that had not seen its kind; below "doubtful" nine of ten have failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import verdict_pairs
from common import machine, publish
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from regagents.registration import verdict
from regenv.atomic import atomic

USED = ("distance", "lead", "mirror", "overlap")   # more of them fit the calibration better and the test worse
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SILENT, FAILED = 0.05, 0.9
UNSURE_MM = (8.0, 60.0)     # errors between two heads that tell of the reference as much as of the registration
FOLDS = 6


def registrations(ledger: Path) -> list[dict[str, Any]]:
    """Rows of both splits, whichever version of the registration made them.

    Left out are heads with an error between 8 and 60 mm: the reference pose of two people is an optimum of mutual
    information over whole heads, which itself may lie so far from where their brains meet.
    """
    rows = [json.loads(line)["result"] for line in ledger.read_text().splitlines()[1:]]
    return [row for row in rows if not (row["possible"] and row["anatomy"] == "head" and row["error_mm"] is not None
                                        and UNSURE_MM[0] < row["error_mm"] < UNSURE_MM[1])]


def fit(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The model as verdict.json holds it."""
    values = np.array([[row["verdict"]["evidence"][name] for name in USED] for row in rows])
    right = np.array([row["right"] for row in rows])
    groups = np.unique([f"{row['kind']} {row['anatomy']}" for row in rows], return_inverse=True)[1]
    scaler = StandardScaler().fit(values)
    scaled = scaler.transform(values)

    def unseen(strength: float) -> np.ndarray:
        return cross_val_predict(LogisticRegression(C=strength, max_iter=1000), scaled, right, groups=groups,
                                 cv=GroupKFold(FOLDS), method="predict_proba")[:, 1]

    strength = min(STRENGTHS, key=lambda one: log_loss(right, unseen(one)))
    told = unseen(strength)
    model = LogisticRegression(C=strength, max_iter=1000).fit(scaled, right)
    limits = np.unique(np.append(told, 1.0))
    aligned = next(float(limit) for limit in limits if (~right & (told >= limit)).mean() <= SILENT and limit >= 0.5)
    below = [float(limit) for limit in limits
             if limit <= aligned and (told < limit).any() and (~right)[told < limit].mean() >= FAILED]
    return {"features": list(USED), "mean": scaler.mean_.tolist(), "deviation": scaler.scale_.tolist(),
            "weights": model.coef_[0].tolist(), "intercept": float(model.intercept_[0]), "aligned": aligned,
            "doubtful": max(below, default=aligned), "registrations": len(rows), "right": int(right.sum()),
            "auc_of_unseen_kinds": float(roc_auc_score(right, told)), "strength": strength}


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

    def judge(found: dict[str, float], ndim: int) -> tuple[str, float]:
        judged = verdict.verdict(found, ndim)
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
