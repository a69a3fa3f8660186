"""Displacement fields on disk: read as SimpleITK reads them where they are sound, refused where they are not."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regenv.data.io.displacements import Field
from regenv.data.io.errors import ImageError
from regenv.data.io.transforms import composite, kinds, parts_of, read_parts, read_transform, write_transform
from regenv.grid import Grid
from tests.regenv.data.io.helpers import SINGLE_PRECISION_MM, TRANSFORM_MM, assert_same_place, grid_of

SHAPES = {2: (7, 6), 3: (5, 6, 7)}


def field(ndim: int, rng: np.random.Generator) -> Field:
    return Field(rng.normal(size=(*SHAPES[ndim], ndim)).astype(np.float32), grid_of(SHAPES[ndim], rng))


def only_field(path: Path) -> Field:
    part, = read_parts(path)
    assert isinstance(part, Field)
    return part


@pytest.mark.parametrize(("suffix", "ndim"), [(".nii", 2), (".nii", 3), (".nii.gz", 3), (".mha", 3), (".nrrd", 2),
                                              (".h5", 3)])
def test_a_field_comes_back_and_simpleitk_reads_the_same(tmp_path: Path, rng, suffix: str, ndim: int) -> None:
    given = field(ndim, rng)
    path = tmp_path / f"field{suffix}"
    write_transform(path, given)
    read = only_field(path)
    assert np.array_equal(read.vectors, given.vectors)
    assert_same_place(read.grid, given.grid, SINGLE_PRECISION_MM)
    theirs = sitk.ReadTransform(str(path)) if suffix == ".h5" else \
        sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    points = given.grid.to_world(rng.uniform(-1, 7, (50, ndim)))
    ours = composite([read])
    for point in points.tolist():
        assert np.allclose(ours.TransformPoint(point), theirs.TransformPoint(point), atol=SINGLE_PRECISION_MM, rtol=0)


def changed(path: Path, at: int, code: str, *values: float) -> Path:
    content = bytearray(path.read_bytes())
    struct.pack_into("<" + code, content, at, *values)
    path.write_bytes(content)
    return path


def test_displacements_in_ras_are_turned_as_simpleitk_turns_them(tmp_path: Path, rng) -> None:
    path = tmp_path / "field.nii"
    write_transform(path, field(3, rng))
    changed(path, 68, "h", 1006)
    assert np.array_equal(only_field(path).vectors, sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


@pytest.mark.parametrize(("at", "code", "values", "words"), [
    (68, "h", (0,), "intent is 0"), (40, "8h", (4, 7, 6, 5, 3, 1, 1, 1), "dim is"), (40, "h", (3,), "dim is"),
    (40, "8h", (5, 7, 6, 20_000, 1, 3, 1, 1), "at most 10922"), (40, "8h", (5, 7, 6, -20_000, 1, 3, 1, 1), "a voxel"),
    (80, "f", (-1.0,), "pixdim"),
    (344, "4s", (b"ni1",), "magic"),
    (352, "f", (np.nan,), "not a number"), (352, "f", (1e9,), "more than"), (108, "f", (7.5,), "vox_offset")])
def test_a_damaged_nifti_field_is_refused(tmp_path: Path, rng, at: int, code: str, values: tuple[float, ...],
                                          words: str) -> None:
    path = tmp_path / "field.nii"
    write_transform(path, Field(field(3, rng).vectors, Grid.centered(SHAPES[3], 2.0)))
    with pytest.raises(ImageError, match=rf"field\.nii: .*{words}"):
        read_parts(changed(path, at, code, *values))


def test_a_truncated_field_is_refused_even_beside_a_whole_one(tmp_path: Path, rng) -> None:
    """SimpleITK fills the rest with zeros, or reads the neighbour without .gz."""
    for name in ("field.nii", "field.nii.gz"):
        write_transform(tmp_path / name, field(3, rng))
    content = gzip.decompress((tmp_path / "field.nii.gz").read_bytes())
    (tmp_path / "field.nii.gz").write_bytes(gzip.compress(content[:-40]))
    with pytest.raises(ImageError, match=r"field\.nii\.gz: decompressed size is .* truncated"):
        read_parts(tmp_path / "field.nii.gz")
    (tmp_path / "field.nii").write_bytes(content[:200])
    with pytest.raises(ImageError, match=r"field\.nii: header is 200 bytes"):
        read_parts(tmp_path / "field.nii")


def test_other_files_are_no_fields(tmp_path: Path, rng) -> None:
    write_transform(tmp_path / "cut.mha", field(3, rng))
    (tmp_path / "cut.mha").write_bytes((tmp_path / "cut.mha").read_bytes()[:-9])
    sitk.WriteImage(sitk.Image(5, 6, 7, sitk.sitkFloat32), str(tmp_path / "scalar.nrrd"))
    sitk.WriteImage(sitk.Image([5, 6, 7], sitk.sitkVectorUInt8, 3), str(tmp_path / "colour.mha"))
    sitk.WriteImage(sitk.Image(5, 6, 7, sitk.sitkVectorFloat32), str(tmp_path / "detached.mhd"))
    (tmp_path / "detached.mha").write_bytes((tmp_path / "detached.mhd").read_bytes())
    for name, words in (("cut.mha", "damaged"), ("scalar.nrrd", "an image of 3 axes"), ("colour.mha", "uint8"),
                        ("detached.mha", "in another file"), ("field.png", "no such file")):
        with pytest.raises(ImageError, match=f"{name}: .*{words}"):
            read_parts(tmp_path / name)


def test_text_that_asks_for_a_huge_field_or_none_is_refused(tmp_path: Path) -> None:
    sitk.WriteTransform(sitk.DisplacementFieldTransform(3), str(tmp_path / "empty.tfm"))
    (tmp_path / "bomb.tfm").write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: DisplacementFieldTransform_double_3_3\n"
        "Parameters: 0 0\nFixedParameters: 100000 100000 1000 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1\n")
    for name, words in (("bomb.tfm", "SimpleITK cannot read it"), ("empty.tfm", "3 axes")):
        with pytest.raises(ImageError, match=f"{name}: .*{words}"):
            read_parts(tmp_path / name)


def test_a_composite_is_read_in_the_order_of_its_points(tmp_path: Path, rng) -> None:
    """ITK lists a composite's parts from the end; matrices that follow each other become one."""
    turn, shift = sitk.Euler3DTransform((1, 2, 3), 0.2, -0.1, 0.3, (4, 5, 6)), sitk.TranslationTransform(3, (7, 8, 9))
    spline = sitk.BSplineTransformInitializer(sitk.Image(9, 9, 9, sitk.sitkFloat32), [2, 2, 2])
    spline.SetParameters(rng.normal(size=len(spline.GetParameters())).tolist())
    inner = sitk.CompositeTransform([shift, spline])
    whole = sitk.CompositeTransform([turn, inner, field(3, rng).transform()])
    sitk.WriteTransform(sitk.CompositeTransform([turn, shift, spline, field(3, rng).transform()]),
                        str(tmp_path / "t.h5"))
    assert kinds(read_parts(tmp_path / "t.h5")) == "displacement field, then BSplineTransform, then rigid"
    parts = parts_of(whole)
    assert kinds(parts) == "displacement field, then BSplineTransform, then rigid"
    for point in rng.uniform(-2, 12, (20, 3)).tolist():
        assert np.allclose(composite(parts).TransformPoint(point), whole.TransformPoint(point), atol=TRANSFORM_MM)
    with pytest.raises(ImageError, match=r"t\.h5: transform is displacement field; a linear one"):
        read_transform(tmp_path / "t.h5")


@pytest.mark.parametrize(("transform", "kind"), [
    (sitk.Transform(3, sitk.sitkIdentity), "identity"), (sitk.TranslationTransform(2, (1, 2)), "translation"),
    (sitk.Euler3DTransform((0, 0, 9), 0.1, 0.2, 0.3), "rigid"), (sitk.ScaleTransform(2, (-1, 1)), "mirrored rigid"),
    (sitk.Similarity3DTransform(1.1, (0, 0, 1), 0.2), "similarity"), (sitk.ScaleTransform(3, (1, 1, 1.1)), "affine")])
def test_kinds_of_linear_transforms(transform: sitk.Transform, kind: str) -> None:
    assert kinds(parts_of(transform)) == kind


def test_only_a_field_is_written_as_an_image(tmp_path: Path) -> None:
    for transform in (np.diag([1.0, 2, 3, 1]), sitk.CompositeTransform([sitk.AffineTransform(3)])):
        with pytest.raises(ImageError, match=r"t\.mha: format is '\.mha', of displacement fields"):
            write_transform(tmp_path / "t.mha", transform)
    assert not list(tmp_path.iterdir())
