"""One line on stderr before the first kernel is compiled, so that nobody wonders what the first step waits for."""

from __future__ import annotations

import sys

from numba.core import event

TEXT = "regenv: compiling kernels, once, about 40 s (`regenv warmup` does it ahead)."


class _Notice(event.Listener):
    """Tells of the first compilation of this process; kernels that are in the cache on disk are not compiled."""

    told = False

    def on_start(self, event: event.Event) -> None:
        dispatcher = (event.data or {}).get("dispatcher")
        if not self.told and getattr(getattr(dispatcher, "py_func", None), "__module__", "").startswith(__package__):
            self.told = True
            print(TEXT, file=sys.stderr, flush=True)

    def on_end(self, event: event.Event) -> None:
        """Nothing is told of it."""


def install() -> None:
    """Listen to numba's compiler from now on."""
    event.register("numba:compile", _Notice())
