"""DICOM against SimpleITK on sound series, and one error that names slice and field for slices that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from regenv.data.io import dicom
from regenv.data.io.errors import ImageError
from regenv.data.io.images import read_image, read_labels
from regenv.grid import Grid
from tests.regenv.data.io.dicom_files import SERIES, multi_frame, name, save, slice_dataset, volume, write
from tests.regenv.data.io.helpers import assert_same_place

PLACE_MM = 1e-5
FLOAT32 = 1e-6                  # relative
OBLIQUE = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0].T[:2]


def by_sitk(folder: Path) -> tuple[np.ndarray, Grid]:
    """What GDCM makes of a sound series."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    return sitk.GetArrayFromImage(image), Grid.from_sitk(image)


# ------------------------------------------------------------------------------------------------------ sound series

SOUND: dict[str, dict[str, Any]] = {
    "signed 16 bits": {"stored": volume(np.int16)},
    "unsigned 16 bits": {"stored": volume(np.uint16)},
    "unsigned 8 bits": {"stored": volume(np.uint8)},
    "odd number of bytes": {"stored": volume(np.uint8, (4, 5, 7))},
    "12 of 16 bits": {"stored": volume(np.uint16, bits=12), "bits_stored": 12},
    "12 of 16 bits, the others filled": {"stored": volume(np.uint16), "bits_stored": 12},
    "12 of 16 bits, signed, the others filled": {"stored": volume(np.int16), "bits_stored": 12},
    "signed 32 bits": {"stored": volume(np.int32)},
    "CT": {"stored": volume(np.uint16, bits=12), "RescaleSlope": 1, "RescaleIntercept": -1024},
    "PET": {"stored": volume(np.int16), "RescaleSlope": 0.37, "RescaleIntercept": 0},
    "MONOCHROME1": {"stored": volume(np.uint16), "PhotometricInterpretation": "MONOCHROME1"},
    "MONOCHROME1, 12 bits, rescaled": {"stored": volume(np.uint16, bits=12), "bits_stored": 12, "RescaleSlope": 2,
                                       "PhotometricInterpretation": "MONOCHROME1", "RescaleIntercept": -5},
    "oblique": {"stored": volume(), "cosines": OBLIQUE},
    "gantry order reversed": {"stored": volume(), "gap": -2.5},
    "implicit": {"stored": volume(), "syntax": ImplicitVRLittleEndian},
    "big endian": {"stored": volume(), "syntax": ExplicitVRBigEndian},
}


@pytest.mark.parametrize("kind", list(SOUND))
def test_sound_series_have_the_voxels_and_the_place_that_gdcm_gives_them(tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path / "series", **SOUND[kind])
    voxels, grid = by_sitk(folder)
    image = read_image(folder)
    np.testing.assert_allclose(image.array, voxels, rtol=FLOAT32)
    assert_same_place(image.grid, grid, PLACE_MM)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000", "RLE"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_losslessly_compressed_series_are_read(tmp_path: Path, compressor: str, dtype: Any) -> None:
    stored = volume(dtype, (4, 32, 20))
    folder = write(tmp_path / "plain", stored, RescaleSlope=2, RescaleIntercept=-7)
    for path in folder.iterdir():
        made = dcmread(path)
        if compressor == "RLE":
            made.compress(RLELossless, generate_instance_uid=False)
        else:
            made.file_meta.TransferSyntaxUID, made.PixelData = compressed(made, compressor, tmp_path / "frame.dcm")
            made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
        save(made, path)
    np.testing.assert_array_equal(read_image(folder).array, stored.astype(np.float32) * 2 - 7)


def compressed(made: Dataset, compressor: str, path: Path) -> tuple[str, bytes]:
    """Transfer syntax and PixelData of a slice as SimpleITK compresses it."""
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(path))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(sitk.GetImageFromArray(made.pixel_array))
    done = dcmread(path)
    return done.file_meta.TransferSyntaxUID, done.PixelData


def test_each_slice_is_rescaled_with_its_own_slope_and_intercept(tmp_path: Path) -> None:
    stored = volume(np.uint16, bits=12)
    slopes, intercepts = [1.0, 0.01, 0.02, 3.0, 0.5], [0.0, -1000.0, 3.5, 0.0, 7.0]
    each = {i: {"RescaleSlope": a, "RescaleIntercept": b} for i, (a, b) in enumerate(zip(slopes, intercepts,
                                                                                         strict=True))}
    wanted = stored * np.reshape(slopes, (-1, 1, 1)) + np.reshape(intercepts, (-1, 1, 1))
    np.testing.assert_allclose(read_image(write(tmp_path / "pet", stored, each=each)).array, wanted, rtol=FLOAT32)


def test_slices_of_different_types_keep_their_values(tmp_path: Path) -> None:
    stored = volume(np.uint8)
    folder = write(tmp_path / "mixed", stored, each={1: {"stored": volume()[1]}, 3: {"stored": volume(np.uint16)[3]}})
    found = read_image(folder).array
    for index, wanted in enumerate([stored[0], volume()[1], stored[2], volume(np.uint16)[3], stored[4]]):
        np.testing.assert_array_equal(found[index], wanted)


def test_labels_of_a_series_stay_whole_numbers(tmp_path: Path) -> None:
    stored = np.full((3, 4, 4), 312782604, np.int32)
    stored[1] = 312782605
    found = read_labels(write(tmp_path / "labels", stored)).array
    assert np.unique(found).tolist() == [312782604, 312782605]


def test_a_given_spacing_stands_in_for_one_that_is_missing_and_for_no_other(tmp_path: Path) -> None:
    without = write(tmp_path / "without", volume(), PixelSpacing=None)
    assert read_image(without, spacing=(0.3, 0.4, 2.5)).grid.spacing == (0.3, 0.4, 2.5)
    found = read_image(without, spacing=0.5)
    assert found.grid.spacing == (0.5, 0.5, 2.5) and "(0.5, 0.5, 0.5)" in found.notes[0]
    assert read_image(write(tmp_path / "with", volume()), spacing=0.5).grid.spacing == (0.6, 0.8, 2.5)


def test_other_files_in_the_folder_are_passed_over(tmp_path: Path) -> None:
    folder = write(tmp_path / "series", volume())
    (folder / "DICOMDIR").write_bytes(bytes(200))
    (folder / "README").write_text("scanned on a Friday\n")
    (folder / "notes.dcm.txt").write_text("none")
    (folder / ".DS_Store").write_bytes(bytes(8))
    (folder / "preview.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    index = Dataset()
    index.file_meta = slice_dataset(volume()[0], 0, (0, 0, 0)).file_meta
    index.SOPClassUID, index.SOPInstanceUID = MediaStorageDirectoryStorage, "1.2.9"
    save(index, folder / "INDEX.dcm")
    np.testing.assert_array_equal(read_image(folder).array, volume())


def test_old_files_without_a_preamble_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "series", volume())
    for path in folder.iterdir():
        raw = path.read_bytes()
        path.write_bytes(raw[raw.index(b"\x08\x00\x16\x00"):])
    np.testing.assert_array_equal(read_image(folder).array, volume())


# ------------------------------------------------------------------------------------------------------ multi-frame

PLACES = [(10.0, -5.0, 3.0 * z) for z in range(5)]


def test_multi_frame_file_takes_its_place_and_slopes_from_the_functional_groups(tmp_path: Path) -> None:
    slopes = [1.0, 2.0, 0.5, 1.0, 3.0]
    path = save(multi_frame(volume(), PLACES, slopes), tmp_path / "mr.dcm")
    image = read_image(path)
    wanted = volume() * np.reshape(slopes, (-1, 1, 1)) - np.arange(5)[:, None, None]
    np.testing.assert_allclose(image.array, wanted, rtol=FLOAT32)
    np.testing.assert_allclose(image.grid.spacing, (0.6, 0.8, 3.0))
    assert image.grid.origin == PLACES[0]


def test_frames_are_put_in_the_order_of_their_positions(tmp_path: Path) -> None:
    path = save(multi_frame(volume(), PLACES[::-1]), tmp_path / "mr.dcm")
    np.testing.assert_array_equal(read_image(path).array, volume()[::-1])
    assert read_image(path).grid.origin == PLACES[0]


def test_volume_that_simpleitk_wrote_into_one_file_comes_back(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(volume(np.uint16))
    image.SetSpacing((0.6, 0.8, 2.5))
    image.SetOrigin((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "volume.dcm"))
    found = read_image(tmp_path / "volume.dcm")
    np.testing.assert_array_equal(found.array, volume(np.uint16))
    assert_same_place(found.grid, Grid.from_sitk(image), PLACE_MM)


@pytest.mark.parametrize(("change", "told"), [
    ({"PerFrameFunctionalGroupsSequence": None}, "ImagePositionPatient of frame 1 is ''"),
    ({"PerFrameFunctionalGroupsSequence": None, "ImagePositionPatient": [0, 0, 0]}, "ImagePositionPatient of frame 1"),
    ({"SharedFunctionalGroupsSequence": None}, "PixelSpacing of frame 1 is ''"),
    ({"NumberOfFrames": 4}, "NumberOfFrames is 4, but PerFrameFunctionalGroupsSequence has 5 items"),
    ({"NumberOfFrames": 10**8}, "GiB; the limit is"),
    ({"NumberOfFrames": -3}, "NumberOfFrames is -3"),
], ids=str)
def test_multi_frame_file_without_its_geometry_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = save(multi_frame(volume(), PLACES, **change), tmp_path / "mr.dcm")
    assert_refused(path, "mr.dcm", told)


def test_multi_frame_file_of_two_time_points_is_refused(tmp_path: Path) -> None:
    path = save(multi_frame(volume(shape=(6, 16, 12)), PLACES[:3] * 2), tmp_path / "mr.dcm")
    assert_refused(path, "mr.dcm", "gap of 0 mm", "doubled")


# ------------------------------------------------------------------------------------------- slices that do not fit

def assert_refused(path: Path, *told: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in told), message


SLANTED = (((1.0, 0.0, 0.0), (0.0, 0.9, 0.5)))
MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "other spacing": ({"spacing": (0.8, 0.7)}, "PixelSpacing is (0.8, 0.7), but (0.8, 0.6) in slice000.dcm"),
    "spacing missing": ({"PixelSpacing": None}, "PixelSpacing is ''; two positive numbers"),
    "spacing zero": ({"spacing": (0.0, 0.6)}, "PixelSpacing is"),
    "spacing of one number": ({"spacing": (0.8,)}, "PixelSpacing is"),
    "a scout": ({"cosines": ((0, 1, 0), (0, 0, -1))}, "ImageOrientationPatient is (0, 1, 0, 0, 0, -1), but (1, 0, 0"),
    "orientation missing": ({"ImageOrientationPatient": None}, "ImageOrientationPatient is ''"),
    "orientation zero": ({"cosines": ((0, 0, 0), (0, 0, 0))}, "ImageOrientationPatient is (0.0, 0.0"),
    "orientation parallel": ({"cosines": ((1, 0, 0), (1, 0, 0))}, "two unit vectors at a right angle"),
    "orientation slanted": ({"cosines": SLANTED}, "two unit vectors at a right angle"),
    "orientation not finite": ({"cosines": ((1, 0, 0), (0, float("nan"), 0))}, "ImageOrientationPatient is"),
    "position missing": ({"ImagePositionPatient": None}, "ImagePositionPatient is ''"),
    "position not finite": ({"position": (0.0, 0.0, float("inf"))}, "ImagePositionPatient is"),
    "position doubled": ({"position": (10.0, -5.0, -30.0)}, "gap of 0 mm"),
    "position beside the line": ({"position": (10.4, -5.0, -25.0)}, "moves"),
    "other size": ({"stored": volume(shape=(1, 16, 14))[0]}, "Rows x Columns is (16, 14), but (16, 12)"),
    "colour": ({"SamplesPerPixel": 3}, "SamplesPerPixel is 3"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "PhotometricInterpretation is 'PALETTE COLOR'"),
    "inverted alone": ({"PhotometricInterpretation": "MONOCHROME1"}, "PhotometricInterpretation is (1), but (2)"),
    "rescaled alone": ({"RescaleSlope": 2, "RescaleIntercept": 0}, "RescaleSlope and RescaleIntercept is (1, 1)"),
    "slope zero": ({"RescaleSlope": 0, "RescaleIntercept": 0}, "RescaleSlope is 0"),
    "more bits stored than allocated": ({"bits_stored": 17}, "BitsStored is 17"),
    "unusual high bit": ({"HighBit": 12}, "HighBit is 12; 15 is needed"),
    "representation 2": ({"PixelRepresentation": 2}, "PixelRepresentation is 2"),
    "bits allocated 12": ({"BitsAllocated": 12, "bits_stored": 12}, "BitsAllocated is 12"),
    "rows zero": ({"Rows": 0}, "Rows is 0"),
    "rows too few": ({"Rows": 15}, "Rows x Columns is (15, 12), but (16, 12)"),
    "pixels too few": ({"PixelData": bytes(100)}, "PixelData is 100 bytes, but the header declares 384"),
    "pixels too many": ({"PixelData": bytes(386)}, "PixelData is 386 bytes"),
    "pixels missing": ({"PixelData": None}, "PixelData is missing"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", list(MISFITS))
def test_slice_that_does_not_fit_is_named_with_its_field(tmp_path: Path, fault: str) -> None:
    change, told = MISFITS[fault]
    folder = write(tmp_path / "ct", volume(), each={2: change})
    assert_refused(folder, name(2) if fault != "position doubled" else "slice014.dcm", told)


@pytest.mark.parametrize("shear", [0.01, 0.2])
def test_series_that_drifts_sideways_is_refused_however_slowly(tmp_path: Path, shear: float) -> None:
    places = [(shear * 2.5 * z, 0.0, 2.5 * z) for z in range(40)]
    assert_refused(write(tmp_path / "ct", volume(shape=(40, 8, 8)), positions=places), "sideways", "tilted gantries")


def test_positions_rounded_by_an_export_are_taken(tmp_path: Path) -> None:
    places = [(round(z * 0.625 * 0.6, 2), 0.0, round(z * 0.625 * 0.8, 2)) for z in range(30)]
    cosines = ((0.8, 0.0, -0.6), (0.0, 1.0, 0.0))
    folder = write(tmp_path / "ct", volume(shape=(30, 8, 8)), positions=places, cosines=cosines)
    assert read_image(folder).grid.spacing[2] == pytest.approx(0.625, rel=1e-3)


# ------------------------------------------------------------------------------------------------------ damaged files

def test_cut_at_any_length_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "ct", volume())
    victim = folder / name(1)
    raw = victim.read_bytes()
    for kept in range(0, len(raw), 13):
        victim.write_bytes(raw[:kept])
        assert_refused(folder, name(1))


@pytest.mark.parametrize("syntax", ["RLE", "JPEG"])
def test_cut_in_compressed_pixels_is_an_error_that_names_the_file(tmp_path: Path, syntax: str) -> None:
    folder = write(tmp_path / "ct", volume())
    victim = folder / name(1)
    made = dcmread(victim)
    if syntax == "RLE":
        made.compress(RLELossless, generate_instance_uid=False)
        frame = made.PixelData[16:-8]
    else:
        made.file_meta.TransferSyntaxUID, content = compressed(made, "JPEG", tmp_path / "frame.dcm")
        frame = content[16:-8]
    made.PixelData = encapsulate([frame[:len(frame) // 2]])
    made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    assert_refused(save(made, victim).parent, name(1))
    victim.write_bytes(victim.read_bytes()[:-20])
    assert_refused(folder, name(1), "truncated")


def test_a_byte_flipped_anywhere_in_the_header_never_ends_in_another_error(tmp_path: Path) -> None:
    folder = write(tmp_path / "ct", volume(shape=(3, 4, 4)))
    victim = folder / name(1)
    raw = victim.read_bytes()
    for at in range(0, len(raw), 3):
        victim.write_bytes(raw[:at] + bytes([raw[at] ^ 0x41]) + raw[at + 1:])
        try:
            found = read_image(folder)
        except ImageError as error:
            assert "\n" not in str(error)
        else:
            assert found.array.shape == (3, 4, 4) and found.grid.spacing == pytest.approx((0.6, 0.8, 2.5), rel=0.02)


def test_jpeg_stream_of_another_size_than_the_header_says_is_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path / "ct", volume())
    for path in folder.iterdir():
        made = dcmread(path)
        made.file_meta.TransferSyntaxUID, made.PixelData = compressed(made, "JPEG", tmp_path / "frame.dcm")
        made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
        made.Rows = 20
        save(made, path)
    assert_refused(folder, "Rows x Columns is 20 x 12, but PixelData holds 16 x 12")


@pytest.mark.parametrize("syntax", [HTJ2KLossless, DeflatedExplicitVRLittleEndian])
def test_compression_that_is_not_supported_is_named(tmp_path: Path, syntax: Any) -> None:
    folder = write(tmp_path / "ct", volume())
    for path in folder.iterdir():
        made = dcmread(path)
        made.file_meta.TransferSyntaxUID = syntax
        if syntax == HTJ2KLossless:
            made.PixelData = encapsulate([bytes(100)])
            made["PixelData"].is_undefined_length = True
        save(made, path)
    assert_refused(folder, "TransferSyntaxUID is", syntax.name, "not supported")


def test_several_series_are_listed(tmp_path: Path) -> None:
    folder = write(tmp_path / "ct", volume())
    save(slice_dataset(volume()[0], 9, (0, 0, 0), SeriesInstanceUID="1.2.7"), folder / "other.dcm")
    assert_refused(folder, "DICOM series found: 2", "1.2.7", SERIES)
    save(slice_dataset(volume()[0], 9, (0, 0, 0), SeriesInstanceUID=None), folder / "other.dcm")
    assert_refused(folder, "DICOM series found: 2", "without SeriesInstanceUID")


# ----------------------------------------------------------------------------------------------------------- bounds

def test_too_many_files_are_refused_before_one_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "ct", volume())
    monkeypatch.setattr(dicom, "MAX_FILES", 4)
    monkeypatch.setattr(dicom, "read_header", None)
    assert_refused(folder, "number of files is 5; the limit is 4")


def test_too_many_bytes_are_refused_before_a_voxel_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "ct", volume())
    monkeypatch.setattr(dicom, "stored_values", None)
    with pytest.raises(ImageError, match=r"size is 12 x 16 x 5.*pass max_bytes"):
        read_image(folder, max_bytes=5 * 16 * 12 * 4 - 1)


@pytest.mark.parametrize("depth", [20, 400])
def test_sequences_in_each_other_are_read_or_one_error(tmp_path: Path, depth: int) -> None:
    folder = write(tmp_path / "ct", volume())
    end, content = b"\xdd\xe0\0\0\0\0", b""
    for _ in range(depth):      # in (0008,1110), of undefined length
        content = b"".join([b"\x08\0\x10\x11SQ\0\0", b"\xff" * 4, b"\xfe\xff\0\xe0", b"\xff" * 4, content,
                            b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff", end])
    victim = folder / name(2)
    raw = victim.read_bytes()
    at = raw.index(b"\x20\0\x0d\0UI")
    victim.write_bytes(raw[:at] + content + raw[at:])
    if depth < 100:
        np.testing.assert_array_equal(read_image(folder).array, volume())
    else:
        assert_refused(folder, name(2), "cannot be read")
