"""The picture of a report: Colin27, turned and moved away, registered onto MNI152 by the default agent.

    python benchmarks/report_screenshot.py             # needs Chromium; writes benchmarks/results/report.png
    python benchmarks/report_screenshot.py --page F    # and keeps the page

The heads come from regenv's data banks. Both lie in the same standard space, so Colin27's header is turned by 35, -25
and 30 degrees about its middle and shifted by 40 mm: the agent finds the way back.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
from scipy.spatial.transform import Rotation

from regagents.registration import report
from regagents.registration.register import register
from regenv.atomic import atomic
from regenv.data.banks.downloads import t1_scan
from regenv.data.io.images import Image, read_image
from regenv.grid import Grid

OUT = Path(__file__).parent / "results" / "report.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DEGREES, SHIFT_MM = (35.0, -25.0, 30.0), (20.0, -15.0, 30.0)
WIDTH, HEIGHT = 1280, 1105     # CSS pixels, of which the picture shows all
STATE = "mode=checker&amount=9"
SECONDS = 120


def turned(image: Image) -> Image:
    """The same voxels, lying elsewhere."""
    grid = image.grid
    direction = Rotation.from_euler("xyz", DEGREES, degrees=True).as_matrix() @ np.reshape(grid.direction, (3, 3))
    moved = Grid.centered(grid.shape, grid.spacing, (grid.center + SHIFT_MM).tolist(), direction.ravel().tolist())
    return replace(image, grid=moved)


def photograph(page: Path, out: Path) -> None:
    """A screenshot of a page by a headless browser. Raises SystemExit where there is none."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("report_screenshot: no Chromium or Chrome is installed.")
    with atomic(out) as temporary, tempfile.TemporaryDirectory() as profile:
        subprocess.run([browser, "--headless=new", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={profile}",
                        f"--window-size={WIDTH},{HEIGHT}", "--force-device-scale-factor=1.25",
                        "--virtual-time-budget=10000", f"--screenshot={temporary.resolve()}",
                        f"{page.resolve().as_uri()}#{STATE}"],
                       check=True, timeout=SECONDS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, metavar="FILE", help="where to keep the page")
    arguments = parser.parse_args(argv)
    fixed, moving = (replace(read_image(t1_scan(name)), path=f"{name}.nii.gz") for name in ("mni152", "colin27"))
    result = register(fixed, turned(moving))
    with tempfile.TemporaryDirectory() as folder:
        page = arguments.page or Path(folder) / "report.html"
        report.write(page, result)
        photograph(page, OUT)
        print(f"{page.stat().st_size / 1e6:.1f} MB page, {OUT.stat().st_size / 1e3:.0f} kB picture: {OUT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
