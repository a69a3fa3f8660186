"""Rendered frames: their shape and type, their colours, their aspect, and that text in them can be read."""

import string
import sys
import time

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from gymnasium.error import DependencyNotInstalled

from regenv import render
from regenv.grid import Grid
from regenv.render import scene as scenes
from regenv.render import text

SLACK = 3     # of a busy machine


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


def scene(shape=(48, 40), name="RegRigid3DGeometric-v0", displacement=None, value=4.0, **changed):
    image = disc(shape)
    fields = {"name": name, "grid": Grid.centered(shape, 2.0), "fixed": image, "warped": disc(shape, 0.3),
              "target": image > 0.5, "moved": None, "displacement": displacement,
              "determinant": None if displacement is None else np.ones(shape, np.float32),
              "reading": render.Reading("TRE, mm", value, 3.0), "limit": 200}
    return render.Scene(**{**fields, **changed})


@pytest.mark.parametrize("style", render.MODES)
@pytest.mark.parametrize("shape", [(28, 28), (128, 100), (12, 40, 40), (64, 48, 32)])
@pytest.mark.parametrize("dense", [False, True])
def test_all_frames_of_an_episode_have_one_even_size(shape, dense, style):
    still = np.zeros((len(shape), *shape), np.float32) if dense else None
    trail = render.Trail((9.0,))
    first = render.picture(scene(shape, displacement=still), trail, style)
    for step in range(3):
        trail = trail.after("tx +1, ty -0.25 (of 3)" * step, 0.5 - step, 8.0 - step)
    later = render.picture(scene(shape, displacement=still, value=float("nan")), trail, style)
    assert first.shape == later.shape and first.dtype == np.uint8
    assert first.shape[0] % 2 == first.shape[1] % 2 == 0
    assert not np.array_equal(first, later)


def test_a_trail_adds_up():
    trail = render.Trail((9.0,)).after("tx +1", 0.5, 8.5).after("tx -1", -0.25, 8.75)
    assert (trail.step, trail.action, trail.reward, trail.total) == (2, "tx -1", -0.25, 0.25)
    assert trail.readings == (9.0, 8.5, 8.75)


def test_actions_are_told_in_words():
    deltas, names = np.kron(np.diag([1.0, 0.05]), [[1.0], [-1.0]]), ("tx", "s")
    assert [render.action_words(n, deltas, names) for n in range(4)] == ["tx +1", "tx -1", "s +0.05", "s -0.05"]
    assert render.action_words(np.array([-0.5, 1.0]), deltas, names) == "tx -0.5, s +0.05"
    assert render.action_words(np.zeros(2), deltas, names) == "no change"
    assert render.action_words(np.full((2, 8, 8), -2.0), np.zeros((0, 2)), ("displacement",)) == "field, mean 2"
    many = render.action_words(np.arange(1, 5) / 4, np.kron(np.eye(4), [[1.0], [-1.0]]), ("a", "b", "c", "d"))
    assert many == "d +1, c +0.75 (of 4)"


def test_isolines_lie_where_values_are_whole():
    ramp = np.linspace(0.0, 2.0, 41)[None].repeat(5, axis=0)           # whole at columns 0, 20 and 40
    assert np.flatnonzero(scenes.isolines(ramp)[2] > 0.5).tolist() == [0, 20, 40]
    assert not scenes.isolines(np.full((5, 5), 0.5)).any()


def test_a_fold_is_red_and_a_still_grid_is_regular():
    shape = (32, 32)
    determinant = np.ones(shape, np.float32)
    determinant[8:16, 8:16] = -0.5
    still = np.zeros((2, *shape), np.float32)
    red = (255, 50, 70)
    folded = render.picture(scene(shape, displacement=still, determinant=determinant), render.Trail((1.0,)))
    regular = render.picture(scene(shape, displacement=still), render.Trail((1.0,)))

    def reddish(picture):
        return (np.abs(picture[scenes.HEADER:, 328:648].astype(int) - red).sum(-1) < 90)

    assert not reddish(regular).any()
    rows, columns = np.nonzero(reddish(folded))
    assert rows.min() >= 78 and rows.max() <= 162 and columns.min() >= 78 and columns.max() <= 162
    assert len(rows) > 4000


def test_letters_stand_at_the_sides_of_the_body():
    volume = np.zeros((40, 40, 40), np.float32)
    picture = render.picture(scene(volume.shape, fixed=volume, warped=volume, target=None), render.Trail((1.0,)))
    axial = picture[scenes.HEADER:scenes.HEADER + 224, :224]
    for letter, place in (("R", axial[105:119, :16]), ("L", axial[105:119, -16:]), ("A", axial[:16, 100:124])):
        glyph = text.dots(letter)
        found = any(np.array_equal(place[y:y + 7, x:x + 5].max(-1) > 128, glyph)
                    for y in range(place.shape[0] - 6) for x in range(place.shape[1] - 4))
        assert found, letter


def test_a_hundred_frames_of_128_by_128_take_less_than_two_seconds():
    still = np.zeros((2, 128, 128), np.float32)
    shown, trail = scene((128, 128), displacement=still), render.Trail(tuple(range(100)))
    begun = time.process_time()
    for _ in range(20):
        render.picture(shown, trail)
    assert time.process_time() - begun < 20 * 0.02 * SLACK


def test_a_window_needs_pygame_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(DependencyNotInstalled, match=r'needs pygame; pip install "regenv\[viz\]"'):
        render.Window("RegRigid2D-v0", 10)


def test_a_window_shows_the_picture(monkeypatch):
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    picture = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    window = render.Window("title", 1000)
    window.show(picture)
    np.testing.assert_array_equal(pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1), picture)
    window.close()
    window.close()
    assert pygame.display.get_surface() is None


def test_every_character_has_its_own_glyph():
    used = string.ascii_letters + string.digits + string.punctuation
    glyphs = {text.dots(c).tobytes() for c in used}
    assert len(glyphs) == len(used)
    assert not text.dots(" ").any()
    np.testing.assert_array_equal(text.dots("\u00e4"), text.dots("?"))


def test_text_is_drawn_as_spelt():
    """The letters T and L, whose shapes anybody knows, at the font's own size."""
    t = ["#####", "..#..", "..#..", "..#..", "..#..", "..#..", "..#.."]
    corner = ["#....", "#....", "#....", "#....", "#....", "#....", "#####"]
    expected = np.array([[c == "#" for c in f"{a}.{b}"] for a, b in zip(t, corner, strict=True)])
    np.testing.assert_array_equal(text.dots("TL"), expected)


def test_text_is_written_where_it_fits_and_cut_off_where_not():
    picture = np.zeros((64, 300, 3), np.uint8)
    text.write(picture, "step 12", 4, 4)
    expected = text.dots("step 12").repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(picture[4:18, 4:4 + expected.shape[1], 0] == 255, expected)
    small = np.zeros((10, 30, 3), np.uint8)
    text.write(small, "longer than the picture", 4, 4)
    assert small.any() and small.shape == (10, 30, 3)


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
