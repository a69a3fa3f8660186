"""Classical registration behind one contract: a tuned SimpleITK baseline and the refinement that follows an agent."""

from regagents.classical.mutual_information import (
    MattesMI,
    Refinement,
    Result,
    evaluate_metric,
    multi_start,
    random_starts,
    refine,
    to_sitk,
)

__all__ = ["MattesMI", "Refinement", "Result", "evaluate_metric", "multi_start", "random_starts", "refine", "to_sitk"]
