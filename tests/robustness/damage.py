"""A seeded generator of damaged files: bits, bytes, words and lines changed, ends cut off, bombs, and paths that lead
elsewhere."""

from __future__ import annotations

import gzip
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np

from tests.regenv.data.io.tags import with_tag
from tests.robustness.sound import NOTHING, PLACE, VOXELS, Sound, all_sound

SEED = 22
BOMB_BYTES = 256 << 20
_NUMBERS = (b"-1", b"0", b"1", b"3", b"99", b"10.7", b"1e300", b"-1e300", b"1e-300", b"inf", b"-inf", b"nan",
            b"9" * 20, b"9" * 5000, b"2147483648", b"0x10", b"1_0", b"", b"%s%n", b"one", b"\xff\xfe", b"\xd9\xa3")
_PATHS = (b"LIST", b"LIST\n/etc/passwd", b"LIST 2", b"../x.raw", b"/etc/passwd", b"/dev/zero", b"/dev/stdin", b"%s%n",
          b"%s%s%n.raw 1 8 1", b"slice%03d.raw 1 4 1", b"pipe", b"zero", b"outside", b".", b"..", b"", b"a\0b", b"self",
          b"folder", b"x" * 5000, b"\xff\xfe.raw", b"http://localhost/x", b"loop")
_FLOATS = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e-30, -1.0, 0.0, 0.5, 353.0, 2.0**31)
_NIFTI_FIELDS = dict.fromkeys((40, 42, 44, 46, 48, 50, 70, 72, 252, 254), "h") | dict.fromkeys(
    (76, 80, 84, 88, 92, 108, 112, 116, 256, 260, 264, 268, 280, 284, 292), "f")
_EXTRA_LINES = (
    b"HeaderSize = 7\n", b"HeaderSize = -1\n", b"HeaderSize = 1e9\n", b"ObjectType = Tube\n", b"BinaryData = False\n",
    b"CompressedData = True\n", b"ElementNumberOfChannels = 2\n", b"\xff\xfe = 3\n", b"byte skip: 5\n",
    b"byte skip: -2\n", b"line skip: 1000000000\n", b"encoding: bzip2\n", b"encoding: ascii\n",
    b'space units: "parsec"\n', b"x" * 100_000 + b"\n", b"a" * 5000 + b" = 1\n",
)
_FOUND_BEFORE = (
    (rb"NDims = 3", b"NDims = 99"), (rb"NDims = 3", b"NDims = -1"), (rb"Offset = .*", b"Offset = 1e300 0 0"),
    (rb"DimSize = 6", b"DimSize = inf"), (rb"DimSize = 6", b"DimSize = 6.7"),
    (rb"ObjectType = Image", b"ObjectType = Scene"), (rb"ElementType = .*", b"ElementType = MET_STRING"),
    (rb"TransformMatrix = .*", b"TransformMatrix = 2 0 0 0 2 0 0 0 2"),
    (rb"TransformMatrix = .*", b"TransformMatrix = 1 0 0 0.2 0.98 0 0 0 1"),
    (rb"CompressedData = False", b"CompressedData = True"),
)
_INTEGERS = (-32768, -64, -1, 0, 1, 2, 5, 8, 99, 4096, 32767)


@dataclass(frozen=True)
class Case:
    """A damaged file.

    Attributes:
        name: what was done to which file.
        sound: the file as it was.
        make: writes it into an empty folder, and gives the path to read.
        may_change: what may differ in what is read: nothing, the place of the image, or its voxels, too.
    """

    name: str
    sound: Sound
    make: Callable[[Path], Path]
    may_change: str = NOTHING


@cache
def cases(seed: int = SEED) -> tuple[Case, ...]:
    """All damaged files of a seed, always the same in the same order."""
    rng = np.random.default_rng(seed)
    found = []
    for sound in all_sound():
        for kind in (_flips, _cuts, _lines, _words, _fields, _specials):
            found += kind(sound, rng)
    return (*found, *_bombs(), *_found_before())


def write(sound: Sound, folder: Path, victim: bytes | None = None) -> Path:
    """Write a sound file, with other content where given, and give the path to read."""
    for name, content in sound.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if victim is None or name != sound.victim else victim)
    return folder / sound.main


def _changed(sound: Sound, name: str, content: bytes, may_change: str = NOTHING) -> Case:
    return Case(f"{sound.name}: {name}", sound, lambda folder: write(sound, folder, content), may_change)


def _flips(sound: Sound, rng: np.random.Generator) -> Iterator[Case]:
    """Each byte changed: one bit, or, at every third, all of it."""
    content = sound.files[sound.victim]
    most = 60 if sound.read == "transform" and not sound.words else 700     # each of those takes a process
    step = max(1, (sound.flipped[1] - sound.flipped[0]) // most)
    for at in range(*sound.flipped, step):
        damaged = bytearray(content)
        damaged[at] ^= 1 << rng.integers(8) if at % 3 else int(rng.integers(1, 256))
        yield _changed(sound, f"byte {at} is {damaged[at]:#x}", bytes(damaged), sound.may_change(at))


def _cuts(sound: Sound, rng: np.random.Generator) -> Iterator[Case]:
    """Cut at every tenth and near both ends; doubled; or with bytes after the end."""
    content = sound.files[sound.victim]
    may_change = VOXELS if sound.voxels and sound.voxels[0] == (0, len(content)) else NOTHING
    for end in sorted({0, 1, 2, *(len(content) * tenth // 10 for tenth in range(1, 10)), len(content) - 1}):
        yield _changed(sound, f"cut after {end} bytes", content[:end], may_change)
    for rest in (b"\0", b"x" * 100, b"\n", content, b"\x1f\x8b" + bytes(8)):
        yield _changed(sound, f"{len(rest)} bytes {rest[:4]!r} after the end", content + rest, may_change)
    yield _changed(sound, "bytes before the start", b"\n" + content, may_change)
    raw = VOXELS if sound.flipped == (0, 0) else may_change        # neither a header nor a checksum
    yield _changed(sound, "random bytes", rng.bytes(len(content)), raw)


def _header(sound: Sound) -> tuple[list[bytes], bytes]:
    """Lines of a header of words, and the rest of the file."""
    content = sound.files[sound.victim]
    match = re.search(rb"\n\n|ElementDataFile[^\n]*\n", content) if sound.read == "image" else None
    end = len(content) if match is None else match.end()
    return content[:end].splitlines(keepends=True), content[end:]


def _lines(sound: Sound, rng: np.random.Generator) -> Iterator[Case]:
    """A line removed, doubled or moved."""
    if not sound.words:
        return
    lines, rest = _header(sound)
    free = PLACE if sound.read == "image" else VOXELS
    for i, line in enumerate(lines):
        j = int(rng.integers(len(lines)))
        without = lines[:i] + lines[i + 1:]
        needed = b"MSB" in line or b"endian" in line
        yield _changed(sound, f"without line {i}", b"".join(without) + rest, VOXELS if needed else free)
        yield _changed(sound, f"line {i} twice", b"".join([*lines[:i], line, *lines[i:]]) + rest, free)
        yield _changed(sound, f"line {i} at {j}", b"".join([*without[:j], line, *without[j:]]) + rest, free)


def _words(sound: Sound, rng: np.random.Generator) -> Iterator[Case]:
    """A number in a header of words replaced by another or none, and a data file's name by a path."""
    if not sound.words:
        return
    lines, rest = _header(sound)
    text = b"".join(lines)
    free = PLACE if sound.read == "image" else VOXELS
    places = [match.span() for match in re.finditer(rb"(?<=[ (,\n])-?[\d.]+(e-?\d+)?", text)]
    for start, end in places:
        for word in (_NUMBERS[i] for i in rng.permutation(len(_NUMBERS))[:6]):
            yield _changed(sound, f"{word[:20]!r} at {start}", text[:start] + word + text[end:] + rest, free)
    name = re.search(rb"(?<=ElementDataFile = )[^\n]*|(?<=data file: )[^\n]*", text)
    for path in _PATHS if name else ():
        content = text[:name.start()] + path + text[name.end():] + rest
        yield Case(f"{sound.name}: data in {path[:20]!r}", sound, lambda folder, content=content: _with_traps(
            sound, folder, content))
    for extra in _EXTRA_LINES:
        yield _changed(sound, f"line {extra[:20]!r}", lines[0] + extra + b"".join(lines[1:]) + rest, free)


def _with_traps(sound: Sound, folder: Path, content: bytes) -> Path:
    """A file among a pipe, an endless device, a link to the outside, a folder, and links in a circle."""
    path = write(sound, folder, content)
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "outside").symlink_to("/etc/passwd")
    (folder / "self").symlink_to(path)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "folder").mkdir()
    return path


def _fields(sound: Sound, rng: np.random.Generator) -> Iterator[Case]:
    """A field of NIfTI set to what no image has."""
    if not sound.victim.endswith((".nii", ".nii.gz", ".hdr")):
        return
    stored = sound.files[sound.victim]
    content = gzip.decompress(stored) if sound.victim.endswith(".gz") else stored
    for at, code in _NIFTI_FIELDS.items():
        for value in _FLOATS if code == "f" else _INTEGERS:
            damaged = bytearray(content)
            struct.pack_into("<" + code, damaged, at, value)
            final = gzip.compress(bytes(damaged), 1, mtime=0) if sound.victim.endswith(".gz") else bytes(damaged)
            place = any(start <= at < end for start, end in ((76, 108), (252, 328)))
            voxels = at in (70, 112, 116)
            yield _changed(sound, f"field at {at} is {value}", final, VOXELS if voxels else PLACE if place else NOTHING)


def _specials(sound: Sound, rng: np.random.Generator) -> Iterator[Case]:
    """No regular file at all, or one whose name is not UTF-8."""
    def trap(kind: str) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            path = folder / sound.victim
            main = write(sound, folder)
            path.unlink()
            if kind == "pipe":
                os.mkfifo(path)
            elif kind == "folder":
                path.mkdir()
            else:
                path.symlink_to(kind)
            return main
        return make

    for kind in ("pipe", "folder", "/dev/zero", "/dev/null", "nowhere", str(Path(sound.victim).name)):
        yield Case(f"{sound.name}: {kind} instead", sound, trap(kind))
    if len(sound.files) == 1:
        def renamed(folder: Path) -> Path:
            path = write(sound, folder)
            return path.rename(folder / os.fsdecode(b"\xff\xfe%s%n" + path.name.encode()))
        yield Case(f"{sound.name}: name is not UTF-8", sound, renamed)


def _bombs() -> Iterator[Case]:
    """Small files that become large."""
    sounds = {sound.name: sound for sound in all_sound()}
    deflating = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    block = deflating.compress(bytes(1 << 20)) + deflating.flush(zlib.Z_FULL_FLUSH)
    deflated, checksum = block * (BOMB_BYTES >> 20) + b"\3\0", 0
    for _ in range(BOMB_BYTES >> 20):
        checksum = zlib.crc32(bytes(1 << 20), checksum)
    adler = (BOMB_BYTES % 65521) << 16 | 1      # of zeros
    zeros = b"\x78\xda" + deflated + struct.pack(">I", adler)
    as_gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + deflated + struct.pack("<II", checksum, BOMB_BYTES)
    assert zlib.decompressobj().decompress(zeros, 9) == gzip.GzipFile(fileobj=BytesIO(as_gzip)).read(9) == bytes(9)
    yield _changed(sounds["c.nii.gz"], "bomb", as_gzip)
    start = zlib.compressobj(9, wbits=31)
    head = start.compress(gzip.decompress(sounds["c.nii.gz"].files["c.nii.gz"])) + start.flush()
    yield _changed(sounds["c.nii.gz"], "bomb after the voxels", head + as_gzip)
    yield _changed(sounds["Analyze, gzip"], "bomb", as_gzip)
    for name, data in (("b.mha", zeros), ("e.nrrd", as_gzip)):
        lines, _ = _header(sounds[name])
        text = re.sub(rb"CompressedDataSize.*\n", b"", b"".join(lines))
        yield _changed(sounds[name], "bomb", text + data)
    for name, line in (("b.mha", b"DimSize = 1000 1000 250"), ("a.mha", b"DimSize = 999 999 250"),
                       ("e.nrrd", b"sizes: 1000 1000 250"), ("d.nrrd", b"sizes: 1000 1000 250"),
                       ("c.mhd", b"DimSize = 20000 20000")):
        content = re.sub(line.split()[0] + b".*", line, sounds[name].files[name], count=1)
        yield _changed(sounds[name], "claims a large size", content)
    png = sounds["a.png"].files["a.png"]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for size in ((11, 9), (15000, 15000), (2**31 - 1, 2**31 - 1)):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
        content = png[:8] + header + chunk(b"IDAT", zeros) + chunk(b"IEND", b"")
        yield _changed(sounds["a.png"], f"bomb of {size}", content)
    tiff = sounds["f.tif"].files["f.tif"]
    placed = with_tag(with_tag(tiff, 273, len(tiff)), 279, len(zeros))
    for size in ((11, 9), (15000, 15000), (2**31 - 1, 2**31 - 1)):
        sized = with_tag(with_tag(with_tag(placed, 256, size[0]), 257, size[1]), 278, size[1])
        yield _changed(sounds["f.tif"], f"bomb of {size}", sized + zeros)
        large = with_tag(with_tag(sounds["e.tif"].files["e.tif"], 256, size[0]), 257, size[1] + 1)
        yield _changed(sounds["e.tif"], f"claims {size}", large)
    for at in (18, 22):
        bmp = bytearray(sounds["i.bmp"].files["i.bmp"])
        struct.pack_into("<i", bmp, at, 30_000)
        yield _changed(sounds["i.bmp"], f"claims 30000 at {at}", bytes(bmp))
    jpeg = sounds["c.jpg"].files["c.jpg"]
    frame = jpeg.index(b"\xff\xc2")
    large = jpeg[:frame + 5] + struct.pack(">HH", 65500, 65500) + jpeg[frame + 9:]
    yield _changed(sounds["c.jpg"], "claims a large size", large, VOXELS)
    scan, end = jpeg.index(b"\xff\xda"), jpeg.rindex(b"\xff\xd9")
    yield _changed(sounds["c.jpg"], "1000 scans", jpeg[:scan] + jpeg[scan:end] * 1000 + b"\xff\xd9", VOXELS)


def _found_before() -> Iterator[Case]:
    """What a first version let pass, or ended in."""
    sounds = {sound.name: sound for sound in all_sound()}
    mha = sounds["a.mha"].files["a.mha"]
    for line, other in _FOUND_BEFORE:
        assert re.search(line, mha)
        yield _changed(sounds["a.mha"], other.decode(), re.sub(line, other, mha, count=1))
