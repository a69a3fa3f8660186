"""One HTML page on which two images, and the way of one onto the other, can be looked at: from disk, without a network.

A :class:`Page` says what is shown; :meth:`Page.html` makes the file. ``regagents register`` fills one with a
registration, :class:`regenv.wrappers.episode.RecordEpisode` with an episode.
"""

from regenv.viewer.geometry import view_grid
from regenv.viewer.page import Choice, Curve, Fact, Film, Number, Page, Step, Table, Verdict
from regenv.viewer.volumes import DisplacementMap, Volume

__all__ = ["Choice", "Curve", "DisplacementMap", "Fact", "Film", "Number", "Page", "Step", "Table", "Verdict", "Volume",
           "view_grid"]
