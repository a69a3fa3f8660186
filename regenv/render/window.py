"""A window for ``render_mode="human"``, by pygame as in Gymnasium's own environments."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled
from numpy.typing import NDArray


class Window:
    """Shows pictures one after the other. Raises DependencyNotInstalled where pygame is missing.

    Args: title: of the window; fps: pictures a second, at most.
    """

    def __init__(self, title: str, fps: int) -> None:
        try:
            self._pygame: Any = importlib.import_module("pygame")
        except ImportError:
            raise DependencyNotInstalled('render_mode is "human", which needs pygame; pip install "regenv[viz]".'
                                         ) from None
        self._title, self._fps = title, fps
        self._screen: Any = None
        self._clock: Any = None

    def show(self, picture: NDArray[np.uint8]) -> None:
        """Show a picture (H, W, 3) and wait for its turn; the window opens with the first one."""
        pygame = self._pygame
        size = picture.shape[1::-1]
        if self._screen is None or self._screen.get_size() != size:
            pygame.display.init()
            pygame.display.set_caption(self._title)
            self._screen = pygame.display.set_mode(size)
            self._clock = pygame.time.Clock()
        self._screen.blit(pygame.surfarray.make_surface(picture.swapaxes(0, 1)), (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self._fps)

    def close(self) -> None:
        """Close the window; safe to call again."""
        if self._screen is not None:
            self._pygame.display.quit()
            self._screen = None
