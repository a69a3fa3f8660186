"""What a browser makes of report.html: pictures that follow its sliders, and names that do nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from regagents.registration import report
from regagents.registration.result import Result
from regenv.data.io.images import Image
from regenv.data.io.resampling import framed, matrix_to_sitk, sampled
from regenv.render import planes_of
from tests.regagents.registration.browser import Browser, chromium
from tests.regagents.registration.test_report import VERDICT, data_of, outcome

HOSTILE = "<img src=x onerror=\"window.hit=1\">'&quot;\u2028.nii.gz"
Pages = dict[str, tuple[Path, Result]]
"""By name: the file, and what it shows."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = chromium()
    if path is None:
        pytest.skip("no Chromium is installed")
    with Browser(path, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    folder = tmp_path_factory.mktemp("reports")
    candidate = {"name": "header", "score": 0.2, "overlap": 0.7, "pull_back": np.eye(4).tolist()}
    results = {"volume": outcome(verdict=VERDICT, candidates=[candidate], deform=True), "image": outcome(2)}
    hostile = outcome(notes=[HOSTILE], verdict=VERDICT | {"reasons": [HOSTILE], "evidence": {HOSTILE: 1.0}})
    results["hostile"] = replace(
        hostile, fixed=replace(hostile.fixed, path=HOSTILE), moving=replace(hostile.moving, path=HOSTILE),
        trace=[row | {"stage": HOSTILE, "action": HOSTILE} for row in hostile.trace])
    for name, result in results.items():
        report.write(folder / f"{name}.html", result)
    return {name: (folder / f"{name}.html", result) for name, result in results.items()}


def test_pixels_change_when_a_slider_moves_and_come_back_with_it(browser: Browser, pages: Pages) -> None:
    browser.open(pages["volume"][0])
    first = browser.picture("#planes")
    for plane in (1, 2, 3):
        slider = f".plane:nth-child({plane}) input"
        middle = browser.evaluate(f"document.querySelector('{slider}').value")
        canvas = f".plane:nth-child({plane}) canvas"
        before = browser.picture(canvas)
        browser.slide(slider, 4)
        assert browser.picture(canvas) != before
        browser.slide(slider, float(middle))
        assert browser.picture(canvas) == before
    assert browser.picture("#planes") == first
    browser.slide("#option input", 90)
    assert browser.picture("#planes") != first
    browser.slide("#step", 1)
    assert browser.evaluate("document.getElementById('showing').textContent") == "first, step 1"


def test_every_way_to_show_the_images_is_another_picture(browser: Browser, pages: Pages) -> None:
    browser.open(pages["volume"][0], state="axial=7&cross=0")
    modes = ("overlay", "checker", "flicker", "difference", "fixed", "moving", "grid", "folding")
    for plane in range(3):
        seen = set()
        for mode in modes:
            browser.evaluate(f"location.hash = 'mode={mode}&amount=50'")
            browser.settled()
            assert browser.evaluate("document.querySelector('#modes [aria-pressed=true]').dataset.name") == mode
            seen.add(browser.evaluate(f"document.querySelectorAll('canvas')[{plane}].toDataURL()"))
        assert len(seen) == len(modes)
    browser.open(pages["image"][0])
    assert browser.evaluate("document.querySelectorAll('#modes button').length") == 6   # no grid without a deformation
    assert browser.evaluate("document.querySelectorAll('.plane').length") == 1


def test_flicker_shows_both_images_in_turn(browser: Browser, pages: Pages) -> None:
    browser.open(pages["volume"][0], state="mode=fixed&cross=0")
    fixed = browser.evaluate("document.querySelector('canvas').toDataURL()")
    browser.open(pages["volume"][0], state="mode=flicker&cross=0&amount=100")
    browser.wait("(window.seen ??= new Set()).add(document.querySelector('canvas').toDataURL()).size === 2")
    assert fixed not in browser.evaluate("[...window.seen]")     # its own word stands on it
    assert browser.evaluate("(async () => (await opened).state.amounts.flicker)()") == 100


@pytest.mark.parametrize("kind", ["volume", "image"])
def test_every_step_of_the_film_is_the_moving_image_through_its_pose(browser: Browser, pages: Pages, kind: str) -> None:
    path, result = pages[kind]
    grid = result.fixed.grid
    data = data_of(path.read_text())
    low, high = data["moving"]["window"]
    normal = Image(((result.moving.array - low) / (high - low)).clip(0, 1), result.moving.grid, "window")
    browser.open(path)
    for step, row in enumerate(result.trace):
        pose = np.eye(grid.ndim + 1)
        for i, j in product(range(grid.ndim), range(grid.ndim + 1)):
            pose[i, j] = row[f"m{i}{j}"]
        expected = 255 * sampled(framed(normal.array, normal.grid), grid, matrix_to_sitk(pose), fill=-1 / 255)
        for number, plane in enumerate(planes_of(grid)):
            index = expected.shape[plane.axes[0]] // 2 if grid.ndim == 3 else 0
            wanted = expected if grid.ndim == 2 else np.take(expected, index, plane.axes[0])
            wanted = wanted if plane.axes[1] < plane.axes[2] else wanted.T
            for axis, flipped in enumerate(plane.flipped):
                wanted = np.flip(wanted, axis) if flipped else wanted
            found = browser.evaluate(
                f"(async () => {{ const viewer = await opened; viewer.toStep({step});"
                f" return [...viewer.movingAt(viewer.views[{number}].slice(viewer.state.at))]; }})()")
            np.testing.assert_allclose(np.array(found).reshape(wanted.shape), wanted, atol=1.0)


def test_the_point_under_the_cross_is_where_simpleitk_puts_it(browser: Browser, pages: Pages) -> None:
    path, result = pages["volume"]
    browser.open(path, state="axial=6&coronal=17&sagittal=9")
    text = browser.evaluate("document.getElementById('reading').textContent")
    fixed, moving = (np.array([float(n) for n in part.split(",")]) for part in re.findall(r"\(([^)]*)\)", text))
    at = browser.evaluate("(async () => (await opened).state.at)()")
    point = result.fixed.grid.to_world(np.array(at))
    np.testing.assert_allclose(fixed, point, atol=0.051)
    np.testing.assert_allclose(moving, result.transform.TransformPoint(point.tolist()), atol=0.06)


def test_a_click_links_the_planes(browser: Browser, pages: Pages) -> None:
    browser.open(pages["volume"][0], height=900)
    others = [browser.picture(f".plane:nth-child({n}) canvas") for n in (2, 3)]
    x, y = browser.evaluate("(({ x, y, width, height }) => [x + width * .3, y + height * .4])"
                            "(document.querySelector('canvas').getBoundingClientRect())")
    before = browser.evaluate("(async () => (await opened).state.at)()")
    browser.click(x, y)
    after = browser.evaluate("(async () => (await opened).state.at)()")
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, False]     # the axial slice stays
    assert [browser.picture(f".plane:nth-child({n}) canvas") for n in (2, 3)] != others


def test_keys_steer_the_page(browser: Browser, pages: Pages) -> None:
    browser.open(pages["volume"][0])
    state = "(async () => { const s = (await opened).state; return [s.mode, s.source, s.step, s.at[0], s.cross]; })()"
    assert browser.evaluate(state) == ["overlay", "result", 4, 11, True]
    for key, code, expected in (("ArrowLeft", 37, ["overlay", "path", 3, 11, True]),
                                ("ArrowLeft", 37, ["overlay", "path", 2, 11, True]),
                                ("ArrowRight", 39, ["overlay", "path", 3, 11, True]),
                                ("ArrowUp", 38, ["overlay", "path", 3, 12, True]),
                                ("2", 50, ["checker", "path", 3, 12, True]),
                                ("b", 66, ["checker", "before", 3, 12, True]),
                                ("x", 88, ["checker", "before", 3, 12, False]),
                                ("r", 82, ["checker", "result", 3, 12, False])):
        browser.press(key, code)
        assert browser.evaluate(state) == expected
    browser.press(" ", 32, " ")
    browser.wait("document.getElementById('play').getAttribute('aria-label') === 'Play the path' "
                 "&& document.getElementById('showing').textContent === 'second, step 4'")    # played to its end
    browser.evaluate("document.querySelector('tr.pick').click()")
    browser.settled()
    assert browser.evaluate("document.getElementById('showing').textContent") == "Candidate header"


def test_a_hostile_name_is_shown_and_does_nothing(browser: Browser, pages: Pages) -> None:
    browser.open(pages["hostile"][0])
    assert browser.evaluate("document.getElementById('title').textContent") == f"{HOSTILE} onto {HOSTILE}"
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.evaluate("window.hit") is None
    assert HOSTILE in browser.evaluate("document.getElementById('reasons').textContent")


def test_a_page_fetches_nothing_and_fits_its_window(browser: Browser, pages: Pages) -> None:
    for width in (390, 900, 1400):
        browser.open(pages["volume"][0], width=width)
        assert [url for url in browser.requests if not url.startswith("data:")] == [pages["volume"][0].as_uri()]
        assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_a_page_follows_the_scheme_of_colours(browser: Browser, pages: Pages) -> None:
    browser.open(pages["image"][0])
    colours = []
    for scheme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        colours.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(245, 246, 248)", "rgb(14, 19, 23)"]
