"""What scanners and operators do to a head: slabs, thick slices, cuts, other contrasts, distortion. All synthetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from regenv.data.io.images import Image, normalize
from regenv.data.io.resampling import foreground_center, resampled
from regenv.grid import Grid
from regenv.ops.kmeans import kmeans

DARK = 0.08     # intensity in [0, 1] below which a voxel is air, fluid or bone


def slab(image: Image, rng: np.random.Generator, slices: int, axis: int = 0, thickness: float = 4.0) -> Image:
    """So many slices, 4 mm thick, about a random level of the head; ``axis``: 0 axial, 1 coronal, 2 sagittal."""
    thick = thick_slices(image, rng, thickness, axis)
    middle = thick.grid.to_voxel(foreground_center(thick))[axis]
    length = thick.grid.shape[axis]
    first = int(np.clip(round(middle - slices / 2 + rng.uniform(-0.1, 0.15) * length), 0, max(0, length - slices)))
    return cropped(thick, axis, first, min(length, first + slices))


def thick_slices(image: Image, rng: np.random.Generator, thickness: float, axis: int = 0) -> Image:
    """The image averaged along an array axis over the thickness of a slice, mm."""
    spacing = image.grid.spacing[2 - axis]
    if thickness <= spacing * 1.01:
        return image
    array = ndimage.uniform_filter1d(image.array.astype(np.float32), max(1, round(thickness / spacing)), axis=axis)
    shape = list(image.grid.shape)
    shape[axis] = max(4, int(shape[axis] * spacing / thickness))
    spacings = [*image.grid.spacing]
    spacings[2 - axis] = thickness
    grid = Grid.centered(shape, spacings, image.grid.center.tolist(), image.grid.direction)
    return resampled(replace(image, array=array), grid, np.eye(4))


def fmri_like(image: Image, rng: np.random.Generator) -> Image:
    """A T2 head as echo-planar imaging shows it, 3.5 mm: scalp and skull dark, bent by up to 8 mm along the phase axis
    (anterior to posterior), with signal lost above the sinuses, and noise. Synthetic."""
    values = normalize(image.array)
    steps = image.grid.spacing[::-1]
    depth = ndimage.distance_transform_edt(inside_skin(values), sampling=steps)
    bright = (0.3 * (values > DARK) + 0.7 * values) * np.clip((depth - 9) / 4, 0.05, 1)
    bumps = ndimage.gaussian_filter(rng.normal(size=values.shape), [18 / step for step in steps])
    places = np.indices(values.shape).astype(np.float32)
    places[1] += 8.0 * bumps / np.abs(bumps).max() / steps[1]
    bent = ndimage.map_coordinates(bright, places, order=1)
    z, y, x = ((ticks - ticks.mean()) * step
               for ticks, step in zip(np.indices(values.shape, sparse=True, dtype=float), steps, strict=True))
    ahead, down = -45 * np.sign(image.grid.direction[4]), -20 * np.sign(image.grid.direction[8])    # LPS
    lost = np.exp(-(x**2 + (y - ahead) ** 2 + (z - down) ** 2) / (2 * 22.0**2))
    small = spaced(replace(image, array=(bent * (1 - 0.9 * lost)).astype(np.float32)), 3.5)
    return replace(small, array=small.array + rng.normal(0, 0.03, small.array.shape).astype(np.float32))


def hands_off(image: Image, rng: np.random.Generator) -> Image:
    """A contrast that no scanner has (Billot et al. 2023, Hoffmann et al. 2022): a random grey for every one of seven
    classes of the head's intensities, background dark, smoothed, with a bias field and noise."""
    values = normalize(image.array)
    labels = kmeans(torch.from_numpy(values)[None, None], 7)[0][0, 0].numpy()
    greys = rng.uniform(0.1, 1.0, 8)
    array = ndimage.gaussian_filter(np.where(inside_skin(values), greys[labels], 0.0), 0.5)
    bias = ndimage.zoom(rng.normal(0, 0.3, (4, 4, 4)), np.array(values.shape) / 4, order=1)
    array = array * np.exp(bias) + rng.normal(0, 0.03, values.shape)
    return replace(image, array=array.astype(np.float32))


def ct_like(image: Image, rng: np.random.Generator) -> Image:
    """A CT from a T1 head: air, soft tissue nearly uniform, skull (the dark shell beneath the scalp) bright."""
    values = normalize(image.array)
    head = inside_skin(values)
    depth = ndimage.distance_transform_edt(head, sampling=image.grid.spacing[::-1])
    bone = head & (values < 0.22) & (depth > 3) & (depth < 14)
    units = np.where(head, 40 + 30 * (values - 0.5), -1000.0)
    units = ndimage.gaussian_filter(np.where(bone, 900.0, units), 0.5) + rng.normal(0, 8, values.shape)
    return replace(image, array=units.astype(np.float32))


def partial(image: Image, rng: np.random.Generator, kept: float = 0.55) -> Image:
    """A part of the head: the rest is cut off along a random axis, from a random side."""
    axis, low = int(rng.integers(3)), bool(rng.integers(2))
    length = image.grid.shape[axis]
    cut = round(length * kept)
    return cropped(image, axis, 0, cut) if low else cropped(image, axis, length - cut, length)


def spaced(image: Image, spacing: float) -> Image:
    """An image on an isotropic grid of its own extent, antialiased."""
    grid = image.grid.resized(spacing=spacing)
    smooth = [0.4 * max(0.0, spacing**2 - own**2) ** 0.5 / own for own in image.grid.spacing[::-1]]
    return resampled(replace(image, array=ndimage.gaussian_filter(image.array, smooth)), grid, np.eye(image.ndim + 1))


def cropped(image: Image, axis: int, first: int, end: int) -> Image:
    """Slices first to end - 1 along an array axis."""
    array = np.take(image.array, np.arange(first, end), axis)
    corner = np.zeros(3)
    corner[axis] = first
    return Image(np.ascontiguousarray(array), replace(image.grid, shape=array.shape, origin=tuple(
        image.grid.to_world(corner).tolist())), image.path)


def inside_skin(values: np.ndarray) -> np.ndarray:
    """Inside of the skin, by a threshold of intensities in [0, 1], closed and filled."""
    mask = sitk.BinaryMorphologicalClosing(sitk.GetImageFromArray((values > DARK).astype(np.uint8)), [4] * 3)
    filled = sitk.GetArrayFromImage(sitk.BinaryFillhole(mask))
    return np.stack([ndimage.binary_fill_holes(layer) for layer in filled])
