"""What is true of the catalogue of ids."""

from __future__ import annotations

import pytest

from regenv.registry import build


def test_unknown_ids_and_mismatched_sources_are_refused() -> None:
    with pytest.raises(ValueError, match=r"RegRigid4D-v0.*RegRigid3D-v0"):
        build("RegRigid4D-v0")
    with pytest.raises(ValueError, match=r"heads.*3D.*2D"):
        build("RegRigid2D-v0", source="heads")
    with pytest.raises(TypeError, match="size"):
        build(build("RegRigid2D-v0"), size=3)
