"""Rendered frames: their shape and type, their colours, their aspect, and that text in them can be read."""

import string

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regenv import render


def disc(shape, radius=0.35):
    """A bright ball in the middle, in [0, 1]."""
    at = np.stack(np.meshgrid(*(np.linspace(-0.5, 0.5, n) for n in shape), indexing="ij"))
    return (np.linalg.norm(at, axis=0) < radius).astype(np.float32)


@pytest.mark.parametrize("mode", render.MODES)
@pytest.mark.parametrize("shape", [(28, 28), (128, 100), (301, 277), (16, 18, 20), (64, 64, 64)])
def test_a_frame_is_an_even_sized_uint8_picture(mode, shape):
    picture = render.frame(disc(shape), torch.from_numpy(disc(shape, 0.3)), mode, text="step 1")
    assert picture.dtype == np.uint8
    assert picture.ndim == 3 and picture.shape[2] == 3
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    assert max(picture.shape[:2]) >= render.SIDE
    assert picture.any()


def test_overlay_is_grey_where_images_match_and_coloured_where_not():
    image, nothing = disc((64, 64)), np.zeros((64, 64))
    middle = (128, 128)
    assert render.frame(image, image)[middle].tolist() == [255, 255, 255]
    assert render.frame(image, nothing)[middle].tolist() == [0, 255, 0]
    assert render.frame(nothing, image)[middle].tolist() == [255, 0, 255]


def test_difference_is_black_where_images_match_and_shows_which_is_brighter():
    image, nothing = disc((64, 64)), np.zeros((64, 64))
    assert not render.frame(image, image, "difference").any()
    red, _, blue = render.frame(nothing, image, "difference")[128, 128]
    assert red > blue
    red, _, blue = render.frame(image, nothing, "difference")[128, 128]
    assert blue > red


def test_checkerboard_shows_either_image_in_turn():
    picture = render.frame(np.ones((64, 64)), np.zeros((64, 64)), "checkerboard")[..., 0]
    assert picture.mean() == pytest.approx(127.5, abs=5)
    assert picture[4, 4] == 255 and picture[4, 36] == 0 and picture[36, 4] == 0 and picture[36, 36] == 255


def test_a_ball_is_round_in_every_panel_whatever_the_spacing():
    shape, spacing = (16, 32, 64), (1.0, 2.0, 4.0)  # 64 mm along every axis
    picture = render.frame(disc(shape), disc(shape), spacing=spacing)
    assert picture.shape[1] == 3 * picture.shape[0]
    for panel in np.split(picture[..., 0] > 127, 3, axis=1):
        rows, columns = np.flatnonzero(panel.any(1)), np.flatnonzero(panel.any(0))
        assert np.ptp(rows) == pytest.approx(np.ptp(columns), rel=0.15)


def test_the_top_of_the_head_points_up():
    volume = np.zeros((32, 32, 32))
    volume[24:] = 1  # large z
    picture = render.frame(volume, volume)[..., 0]
    side = picture.shape[0]
    for panel in (1, 2):  # coronal, sagittal
        view = picture[:, panel * side:(panel + 1) * side]
        assert view[: side // 8].mean() > 250
        assert view[side // 2:].mean() < 5


def test_not_a_number_and_bright_values_do_not_spoil_a_frame():
    image = disc((32, 32))
    wild = image.copy()
    wild[0, 0], wild[0, 1], wild[16, 16] = np.nan, -np.inf, 7.0
    np.testing.assert_array_equal(render.frame(wild, wild), render.frame(image, image))


def test_curve_falls_with_the_error():
    picture = render.curve([10.0, 5.0, 0.0], height=60, width=120)
    line = (picture == render._LINE).all(-1)
    first, last = np.flatnonzero(line[:, 4]), np.flatnonzero(line[:, 114])
    assert picture.shape == (60, 120, 3)
    assert first.min() < 8 and last.max() > 50


@pytest.mark.parametrize("errors", [[], [float("nan")], [0.0], [3.0], [1.0, float("nan"), 2.0], list(range(1000))])
def test_curve_of_any_length_keeps_its_size(errors):
    assert render.curve(errors, 40, 100).shape == (40, 100, 3)
    image = disc((32, 32))
    with_curve = render.frame(image, image, errors=errors)
    assert with_curve.shape == (256 + render.CURVE_HEIGHT, 256, 3)


def test_every_character_has_its_own_glyph():
    used = string.ascii_letters + string.digits + string.punctuation
    glyphs = {render._dots(c).tobytes() for c in used}
    assert len(glyphs) == len(used)
    assert not render._dots(" ").any()
    np.testing.assert_array_equal(render._dots("\u00e4"), render._dots("?"))


def test_text_is_drawn_as_spelt():
    """The letters T and L, whose shapes anybody knows, at the font's own size."""
    t = ["#####", "..#..", "..#..", "..#..", "..#..", "..#..", "..#.."]
    corner = ["#....", "#....", "#....", "#....", "#....", "#....", "#####"]
    expected = np.array([[c == "#" for c in f"{a}.{b}"] for a, b in zip(t, corner, strict=True)])
    np.testing.assert_array_equal(render._dots("TL"), expected)


def test_annotate_writes_step_and_error_into_a_copy():
    blank = np.zeros((64, 300, 3), np.uint8)
    written = render.annotate(blank, 12, 3.42)
    assert not blank.any()
    assert written.shape == blank.shape
    expected = render._dots("step 12  TRE 3.4 mm").repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(written[4:18, 4:4 + expected.shape[1], 0] == 255, expected)
    np.testing.assert_array_equal(render.annotate(blank, 12, None), render.annotate(blank, 12, float("nan")))


def test_text_longer_than_the_picture_is_cut_off():
    assert render.annotate(np.zeros((10, 30, 3), np.uint8), 123456, 3.4).shape == (10, 30, 3)


def test_png_round_trips(tmp_path):
    picture = render.frame(disc((32, 40)), disc((32, 40), 0.3), text="step 3")
    path = tmp_path / "frame.png"
    render.write_png(path, picture)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), picture)


def test_errors_name_the_argument_and_its_value(tmp_path):
    image = np.zeros((8, 8))
    with pytest.raises(ValueError, match="mode is 'blend'; choose one of overlay, checkerboard, difference"):
        render.frame(image, image, "blend")
    with pytest.raises(ValueError, match=r"fixed is \(8, 8\) and warped is \(8, 9\)"):
        render.frame(image, np.zeros((8, 9)))
    with pytest.raises(ValueError, match=r"spacing is \(1.0,\)"):
        render.frame(image, image, spacing=(1.0,))
    with pytest.raises(ValueError, match=r"bad.png: the picture is \(8, 8\) float64"):
        render.write_png(tmp_path / "bad.png", image)
