"""Text in pictures: a font of dots, so that rendering needs no font file and looks alike everywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HEIGHT, ADVANCE = 7, 6      # dots: of a glyph, and from one character to the next

# Glyphs of the characters from space to tilde, 5 columns of 7 dots each, one byte a column, lowest bit on top.
_FONT = bytes.fromhex(
    "0000000000 00005f0000 0007000700 147f147f14 242a7f2a12 2313086462 3649552250 0000070000 001c224100 0041221c00"
    "2a1c7f1c2a 08083e0808 0000503000 0808080808 0000606000 2010080402 3e5149453e 00427f4000 4261514946 2141454b31"
    "1814127f10 2745454539 3c4a494930 0171090503 3649494936 064949291e 0000363600 0000563600 0008142241 1414141414"
    "4122140800 0201510906 324979413e 7e1111117e 7f49494936 3e41414122 7f4141221c 7f49494941 7f09090901 3e41495a3a"
    "7f0808087f 00417f4100 2040413f01 7f08142241 7f40404040 7f020c027f 7f0408107f 3e4141413e 7f09090906 3e4151215e"
    "7f09192946 4649494931 01017f0101 3f4040403f 1f2040201f 3f4038403f 6314081463 0304780403 6151494543 007f414100"
    "0204081020 0041417f00 0402010204 4040404040 0001020400 2054545478 7f48444438 3844444420 384444487f 3854545418"
    "087e090102 0c5252523e 7f08040478 00447d4000 2040443d00 7f10284400 00417f4000 7c04180478 7c08040478 3844444438"
    "7c14141408 081414187c 7c08040408 4854545420 043f444020 3c4040207c 1c2040201c 3c4030403c 4428102844 0c5050503c"
    "4464544c44 0008364100 00007f0000 0041360800 0804081008"
)


def dots(text: str) -> NDArray[np.bool_]:
    """A line of text as a (7, 6 len(text) - 1) mask; a character that the font lacks becomes a question mark."""
    columns = []
    for character in text:
        index = ord(character) - 32
        glyph = index if 0 <= 5 * index < len(_FONT) else ord("?") - 32
        columns.append(np.frombuffer(_FONT, dtype=np.uint8)[5 * glyph : 5 * glyph + 5])
        columns.append(np.zeros(1, dtype=np.uint8))
    if not columns:
        return np.zeros((HEIGHT, 0), dtype=bool)
    return (np.concatenate(columns)[None, :-1] >> np.arange(HEIGHT)[:, None]) & 1 == 1


def width(text: str, size: int) -> int:
    """Pixels that a line takes at ``size`` pixels a dot."""
    return max(0, size * (ADVANCE * len(text) - 1))


def write(picture: NDArray[np.uint8], text: str, left: int, top: int, ink: tuple[int, int, int] = (255, 255, 255),
          size: int = 2, paper: tuple[int, int, int] | None = None) -> None:
    """Write a line of text into a picture (H, W, 3), in place: at ``size`` pixels a dot where it fits, else at one,
    and cut off at the right and at the bottom.

    Args: paper: colour of the box behind it, with a margin of two pixels; None: what is there stays.
    """
    size = size if left + width(text, size) <= picture.shape[1] else 1
    shape = dots(text).repeat(size, axis=0).repeat(size, axis=1)
    if paper is not None:
        picture[max(0, top - 2):top + shape.shape[0] + 2, max(0, left - 2):left + shape.shape[1] + 2] = paper
    place = picture[top:top + shape.shape[0], left:left + shape.shape[1]]
    place[shape[:place.shape[0], :place.shape[1]]] = ink
