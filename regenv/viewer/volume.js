"use strict";
/* Volumes as they are embedded: unpacked, sampled, and mapped between voxels (array order) and the world (mm, LPS).
   An affine map is 12 numbers, the rows of a 3 x 4 matrix. */

const affine = {
  identity: [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
  /* The map that first does b, then a. */
  after(a, b) {
    const out = [];
    for (let i = 0; i < 3; i++) {
      for (let j = 0; j < 4; j++) {
        out.push(a[4 * i] * b[j] + a[4 * i + 1] * b[4 + j] + a[4 * i + 2] * b[8 + j] + (j === 3 ? a[4 * i + 3] : 0));
      }
    }
    return out;
  },
  inverse(m) {
    const [a, b, c, x, d, e, f, y, g, h, k, z] = m;
    const det = a * (e * k - f * h) - b * (d * k - f * g) + c * (d * h - e * g);
    const r = [e * k - f * h, c * h - b * k, b * f - c * e, f * g - d * k, a * k - c * g, c * d - a * f,
      d * h - e * g, b * g - a * h, a * e - b * d].map((value) => value / det);
    return [0, 1, 2].flatMap((i) => [r[3 * i], r[3 * i + 1], r[3 * i + 2],
      -(r[3 * i] * x + r[3 * i + 1] * y + r[3 * i + 2] * z)]);
  },
  of(m, p) {
    return [0, 1, 2].map((i) => m[4 * i] * p[0] + m[4 * i + 1] * p[1] + m[4 * i + 2] * p[2] + m[4 * i + 3]);
  },
};

/* The bytes of base64 of gzip. */
async function unpacked(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

class Volume {
  constructor(told, voxels) {
    this.name = told.name;
    this.window = told.window;
    this.shape = told.shape;
    this.voxels = voxels;
    this.size = told.shape[0] * told.shape[1] * told.shape[2];
    this.toWorld = told.toWorld;
    this.toVoxel = affine.inverse(told.toWorld);
    this.spacing = [0, 1, 2].map((axis) => Math.hypot(...[0, 1, 2].map((row) => told.toWorld[4 * row + axis])));
  }

  static async of(told, type = Uint8Array) {
    return new Volume(told, new type(await unpacked(told.voxels)));
  }

  /* Edge to edge along an array axis, mm. */
  extent(axis) { return this.shape[axis] * this.spacing[axis]; }

  /* Linear interpolation at a voxel point; outside the image -1. As in ITK, the image reaches half a voxel beyond the
     middles of its outermost voxels. */
  at(z, y, x, offset = 0) {
    const [depth, height, width] = this.shape;
    if (!(z >= -0.5 && y >= -0.5 && x >= -0.5 && z <= depth - 0.5 && y <= height - 0.5 && x <= width - 0.5)) return -1;
    z = Math.min(Math.max(z, 0), depth - 1);
    y = Math.min(Math.max(y, 0), height - 1);
    x = Math.min(Math.max(x, 0), width - 1);
    const k = Math.min(z | 0, Math.max(depth - 2, 0)), j = Math.min(y | 0, Math.max(height - 2, 0));
    const i = Math.min(x | 0, Math.max(width - 2, 0));
    const c = z - k, b = y - j, a = x - i, v = this.voxels;
    const dx = width > 1 ? 1 : 0, dy = height > 1 ? width : 0, dz = depth > 1 ? width * height : 0;
    const n = offset + (k * height + j) * width + i;
    const low = (v[n] * (1 - a) + v[n + dx] * a) * (1 - b) + (v[n + dy] * (1 - a) + v[n + dx + dy] * a) * b;
    if (c === 0) return low;
    const m = n + dz;
    const high = (v[m] * (1 - a) + v[m + dx] * a) * (1 - b) + (v[m + dy] * (1 - a) + v[m + dx + dy] * a) * b;
    return low * (1 - c) + high * c;
  }

  /* The value of the nearest voxel; outside -1. */
  nearest(z, y, x) {
    const [k, j, i] = [Math.round(z), Math.round(y), Math.round(x)];
    const [depth, height, width] = this.shape;
    if (k < 0 || j < 0 || i < 0 || k >= depth || j >= height || i >= width) return -1;
    return this.voxels[(k * height + j) * width + i];
  }

  /* An intensity in the image's own unit. */
  intensity(value) { return this.window[0] + (value / 255) * (this.window[1] - this.window[0]); }
}

/* One slice of a grid as rows of the screen: where its pixels lie. */
class Slice {
  constructor(volume, plane, index) {
    this.plane = plane;
    this.index = index;
    const [through, down, across] = plane.axes;
    this.height = volume.shape[down];
    this.width = volume.shape[across];
    this.tall = volume.extent(down);
    this.wide = volume.extent(across);
    this.origin = [0, 0, 0];
    this.origin[through] = index;
    this.origin[down] = plane.flipped[0] ? this.height - 1 : 0;
    this.origin[across] = plane.flipped[1] ? this.width - 1 : 0;
    this.down = [0, 0, 0];
    this.down[down] = plane.flipped[0] ? -1 : 1;
    this.across = [0, 0, 0];
    this.across[across] = plane.flipped[1] ? -1 : 1;
  }

  /* The voxel point of a pixel's middle. */
  voxel(row, column) {
    return [0, 1, 2].map((axis) => this.origin[axis] + row * this.down[axis] + column * this.across[axis]);
  }

  /* Row and column of a voxel point. */
  pixel(point) {
    const [, down, across] = this.plane.axes;
    return [this.plane.flipped[0] ? this.height - 1 - point[down] : point[down],
      this.plane.flipped[1] ? this.width - 1 - point[across] : point[across]];
  }

  /* A function of voxel points under an affine map, at every pixel: Float32Array, row by row. */
  values(read, map = affine.identity) {
    const out = new Float32Array(this.width * this.height);
    const start = affine.of(map, this.origin);
    const linear = (v) => [0, 1, 2].map((i) => map[4 * i] * v[0] + map[4 * i + 1] * v[1] + map[4 * i + 2] * v[2]);
    const down = linear(this.down), across = linear(this.across);
    for (let row = 0, n = 0; row < this.height; row++) {
      for (let column = 0; column < this.width; column++, n++) {
        out[n] = read(start[0] + row * down[0] + column * across[0], start[1] + row * down[1] + column * across[1],
          start[2] + row * down[2] + column * across[2]);
      }
    }
    return out;
  }
}

/* A displacement u of world points (mm), and the determinant of x -> x + u(x). */
class Displacement {
  constructor(vectors, largest, determinant, octaves) {
    Object.assign(this, { vectors, factor: largest / 32767, determinant, octaves });
  }

  static async of(told) {
    return new Displacement(await Volume.of(told.vectors, Int16Array), told.vectors.largest,
      await Volume.of(told.determinant), told.determinant.octaves);
  }

  /* u at a world point; beyond the grid there is none. */
  at(world) {
    const p = affine.of(this.vectors.toVoxel, world), [depth, height, width] = this.vectors.shape;
    const within = p[0] >= -0.5 && p[1] >= -0.5 && p[2] >= -0.5 && p[0] <= depth - 0.5 && p[1] <= height - 0.5
      && p[2] <= width - 0.5;
    return [0, 1, 2].map((axis) => (within ? this.factor * this.vectors.at(...p, axis * this.vectors.size) : 0));
  }
}
