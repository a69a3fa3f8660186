"""Pictures of episodes and of image pairs: uint8 RGB arrays for ``render()``, videos and result files.

:func:`picture` draws an episode's frame from a :class:`Scene` (what the images look like now) and a :class:`Trail`
(what has happened so far); :func:`frame` draws two images alone. A volume is shown by its middle axial, coronal and
sagittal slice in radiological convention. Nothing here needs a display but :class:`Window`.
"""

from regenv.render.images import MODES, SIDE, frame, write_png
from regenv.render.planes import Plane, planes_of
from regenv.render.scene import Scene, picture
from regenv.render.trail import Reading, Trail, action_words
from regenv.render.window import Window

__all__ = ["MODES", "SIDE", "Plane", "Reading", "Scene", "Trail", "Window", "action_words", "check_modes", "frame",
           "picture", "planes_of", "write_png"]


def check_modes(render_mode: str | None, render_style: str, modes: tuple[str, ...]) -> None:
    """Raise ValueError unless an environment can draw like that: ``render_mode`` None or one of ``modes``, a known
    style."""
    if render_mode not in (None, *modes):
        raise ValueError(f"render_mode is {render_mode!r}; it must be None or one of {', '.join(modes)}.")
    if render_style not in MODES:
        raise ValueError(f"render_style is {render_style!r}; it must be one of {', '.join(MODES)}.")
