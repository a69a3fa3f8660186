"""What is true of the catalogue of ids."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import regenv
from regenv.registry import CATALOGUE, build

AT_ONCE = """
import sys, gymnasium, regenv
assert set(regenv.CATALOGUE) <= set(gymnasium.registry)
print(*sorted({"torch", "numba", "scipy", "SimpleITK", "cv2", "stable_baselines3"} & set(sys.modules)))
"""


def test_unknown_ids_and_mismatched_sources_are_refused() -> None:
    with pytest.raises(ValueError, match=r"RegRigid4D-v0.*RegRigid3D-v0"):
        build("RegRigid4D-v0")
    with pytest.raises(ValueError, match=r"heads.*3D.*2D"):
        build("RegRigid2D-v0", source="heads")
    with pytest.raises(TypeError, match="size"):
        build(build("RegRigid2D-v0"), size=3)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_rows_builder_takes_its_arguments(name: str) -> None:
    row = CATALOGUE[name]
    assert set(row.arguments) < set(inspect.signature(row.builder).parameters)


def test_importing_regenv_registers_every_id_before_anything_heavy_is_there() -> None:
    done = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_every_public_name_is_there_and_no_other() -> None:
    assert {name for name in regenv.__all__ if hasattr(regenv, name)} == set(regenv.__all__) <= set(dir(regenv))
    with pytest.raises(AttributeError, match=r"regenv.*Taks"):
        regenv.Taks  # noqa: B018
