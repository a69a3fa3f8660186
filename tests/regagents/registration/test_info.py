"""What is told of files: what SimpleITK says of them, and what it does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regagents.registration.apply import invert_file
from regagents.registration.info import decomposed, describe, orientation, text
from regagents.registration.statement import beside, check_free, read_statement, statement, write_statement
from regenv.data.io.displacements import Field
from regenv.data.io.errors import ImageError
from regenv.data.io.images import Image
from regenv.data.io.resampling import sitk_to_matrix
from regenv.data.io.transforms import write_transform
from regenv.data.io.writing import write_image
from regenv.grid import Grid
from tests.regagents.toys import checkpoint

TURNED = Grid((5, 6, 7), (1.0, 2.0, 3.0), (10.0, 20.0, 30.0), (-1.0, 0, 0, 0, -1, 0, 0, 0, 1))


def test_an_image(tmp_path: Path) -> None:
    array = np.arange(210, dtype=np.int16).reshape(5, 6, 7) - 7
    write_image(tmp_path / "a.nii.gz", array, TURNED)
    told = describe(tmp_path / "a.nii.gz")
    assert told["what"] == "image" and told["refused"] is None and told["type"] == "int16"
    assert told["size"] == [7, 6, 5] and told["spacing_mm"] == [1, 2, 3] and told["range"] == [-7, 202]
    assert told["orientation"] == "RAS" and told["oblique_degrees"] == 0
    lines = text(told).splitlines()
    assert lines[0].endswith("a.nii.gz: image, 3D, 7 x 6 x 5 voxels") and "RAS" in lines[2] and "-7 to 202" in lines[3]
    json.dumps(told, allow_nan=False)


def test_orientations_are_simpleitks(rng) -> None:
    """The axis that each column of the direction lies nearest to, of a turn by less than 30 degrees."""
    for name in ("LPS", "RAS", "PIR", "SAL"):
        source = sitk.Image(3, 3, 3, sitk.sitkUInt8)
        turn = np.asarray(sitk.Euler3DTransform((0, 0, 0), *rng.uniform(-0.25, 0.25, 3)).GetMatrix()).reshape(3, 3)
        direction = turn @ np.reshape(sitk.DICOMOrient(source, name).GetDirection(), (3, 3))
        assert orientation(direction) == name
    assert orientation(np.eye(2)) is None


@pytest.mark.parametrize(("make", "words"), [
    (lambda: sitk.JoinSeries([sitk.Image(4, 5, 6, sitk.sitkInt16)] * 3, 0.0, 2.5), ("3 volumes 2.5 s", "--time")),
    (lambda: sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 3), ("3 numbers of vector of 8-bit",
                                                               "one intensity")),
    (lambda: sitk.GetImageFromArray(np.array([[np.nan, 1], [2, 3]], np.float32)), ("from 1 to 3, 1 not finite",))])
def test_what_cannot_be_registered_is_told_all_the_same(tmp_path: Path, make, words: tuple[str, ...]) -> None:
    sitk.WriteImage(make(), str(tmp_path / "a.nrrd"))
    told = text(describe(tmp_path / "a.nrrd"))
    for word in words:
        assert word.lower() in told.lower(), told


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    write_image(tmp_path / "a.mha", np.ones((4, 5, 6), np.float32), Grid.centered((4, 5, 6), 1.0))
    (tmp_path / "a.mha").write_bytes((tmp_path / "a.mha").read_bytes()[:-5])
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    for name in ("a.mha", "a.h5", "none.tfm", "none"):
        with pytest.raises(ImageError, match=name) as caught:
            describe(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_matrix_is_told_about_the_fixed_images_centre(tmp_path: Path) -> None:
    fixed = Image(np.zeros((5, 6, 7), np.float32), TURNED, "fixed.nii")
    turn = sitk.Euler3DTransform(TURNED.center.tolist(), 0.1, -0.2, 0.3, (4.0, 5.0, 6.0))
    write_transform(tmp_path / "transform.tfm", sitk_to_matrix(turn))
    alone = describe(tmp_path / "transform.tfm")
    assert "no JSON beside it" in alone["maps"] and alone["parts"][0]["center_mm"] == [0, 0, 0]
    write_statement(tmp_path / "transform.tfm", statement(fixed, fixed, {"transform.tfm": "rigid"}))
    told = describe(tmp_path / "transform.tfm")
    part, = told["parts"]
    assert told["kind"] == part["kind"] == "rigid" and told["maps"].startswith("points of the fixed image")
    assert np.allclose(part["translation_mm"], (4, 5, 6)) and np.allclose(part["center_mm"], TURNED.center)
    assert np.allclose(part["euler_degrees"], np.degrees((0.1, -0.2, 0.3))) and np.allclose(part["scales"], 1)
    assert "translation (4.00, 5.00, 6.00) mm" in text(told) and "fixed: fixed.nii, 7 x 6 x 5 voxels" in text(told)


@pytest.mark.parametrize("ndim", [2, 3])
def test_shears_scales_and_rotation_make_the_matrix_again(ndim: int, rng) -> None:
    for mirrored in (1.0, -1.0):
        matrix = np.eye(ndim + 1)
        matrix[:ndim, :ndim] += 0.3 * rng.normal(size=(ndim, ndim))
        matrix[0] *= mirrored
        matrix[:ndim, ndim] = rng.normal(size=ndim) * 10
        center = rng.normal(size=ndim) * 10
        told = decomposed(matrix, center)
        shear = np.eye(ndim)
        shear[np.triu_indices(ndim, 1)] = told["shears"]
        turn = sitk.Euler2DTransform((0, 0), np.radians(told["rotation_degrees"])) if ndim == 2 else \
            sitk.Euler3DTransform((0, 0, 0), *np.radians(told["euler_degrees"]))
        linear = np.reshape(turn.GetMatrix(), (ndim, ndim)) @ np.diag(told["scales"]) @ shear
        assert np.allclose(linear, matrix[:ndim, :ndim])
        assert np.allclose(linear @ center + matrix[:ndim, ndim], center + told["translation_mm"])
        assert np.isclose(told["determinant"], np.prod(told["scales"]))
        if ndim == 3:
            versor = sitk.VersorTransform(told["rotation_axis"], np.radians(told["rotation_degrees"]))
            assert np.allclose(versor.GetMatrix(), turn.GetMatrix())


def test_a_composite_with_a_field_and_its_inverse(tmp_path: Path) -> None:
    vectors = np.zeros((5, 6, 7, 3))
    vectors[..., 0] = -0.5 * np.arange(7)           # x halves, and moves by 3 mm at most
    field = Field(vectors, Grid.centered((5, 6, 7), 1.0))
    write_transform(tmp_path / "t.h5", sitk.CompositeTransform([sitk.ScaleTransform(3, (2, 2, 2)), field.transform()]))
    told = describe(tmp_path / "t.h5")
    assert told["kind"] == "displacement field, then similarity"
    part = told["parts"][0]
    assert part["displacement_mm"]["max"] == 3 and np.isclose(part["determinant"]["least"], 0.5) and part["folded"] == 0
    assert np.isclose(told["parts"][1]["determinant"], 8) and "volume x 8.0000" in text(told)
    invert_file(tmp_path / "t.h5", tmp_path / "i.h5")
    inverse = text(describe(tmp_path / "i.h5"))
    assert "the other way than t.h5" in inverse and "round trip: median" in inverse


def test_a_checkpoint(tmp_path: Path) -> None:
    told = describe(checkpoint(tmp_path / "toy.safetensors", 2, licence="Apache-2.0"))
    assert told["what"] == "checkpoint" and told["card"]["env"] == "RegRigid2D-v0"
    assert "checkpoint of DSL" in text(told) and "licence: Apache-2.0" in text(told)
    assert describe("head-geometric")["file"].endswith("head-geometric.safetensors")


# ----------------------------------------------------------------------------------------------------------- statements

def test_a_statement_is_of_the_files_that_it_names(tmp_path: Path) -> None:
    image = Image(np.zeros((5, 6, 7), np.float32), TURNED, "fixed.nii")
    stated = statement(image, image, {"transform.tfm": "rigid", "u.nii.gz": "field"})
    write_statement(tmp_path / "transform.tfm", stated)
    assert read_statement(tmp_path / "u.nii.gz") == read_statement(tmp_path / "transform.tfm") is not None
    assert read_statement(tmp_path / "transform.h5") is None
    for content in ("{", "[]", '{"maps": 3, "files": {}}', '{"maps": "x", "files": []}'):
        (tmp_path / "transform.json").write_text(content)
        assert read_statement(tmp_path / "transform.tfm") is None
        with pytest.raises(ValueError, match=r"transform\.json: it is there"):
            check_free(tmp_path / "transform.tfm")
    assert beside("a/b.c.nii.gz") == Path("a/b.c.json") and beside("t.TFM") == Path("t.json")
