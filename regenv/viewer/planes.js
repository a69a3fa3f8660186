/* Slices on a canvas: how two images are mixed, the warped grid, the folds, and what is written on them. */

/* Together they are white, so that what matches is grey. */
const INK = { fixed: [26, 158, 219], moving: [229, 97, 36], fold: [255, 40, 90] };

/* What a mode is called, what its slider does (name, least, most, step, unit, first value), and whether it needs a
   displacement. */
const MODES = {
  overlay: { label: "Overlay", slider: ["Moving", 0, 100, 1, "%", 50] },
  checker: { label: "Checkerboard", slider: ["Squares", 2, 32, 1, "across", 9] },
  flicker: { label: "Flicker", slider: ["Every", 100, 1500, 50, "ms", 500] },
  difference: { label: "Difference", slider: ["Gain", 1, 6, 0.5, "\u00d7", 1.5] },
  fixed: { label: "Fixed" },
  moving: { label: "Moving" },
  grid: { label: "Warped grid", slider: ["Lines", 4, 60, 1, "across", 23], dense: true },
  folding: { label: "Folding", slider: ["Colour", 0, 100, 1, "%", 70], dense: true },
};

/* Colour of each pixel of a slice. fixed, moving: 0 to 255, -1 outside; codes: of determinants; late: of the two
   images that flicker the second; longest: side of the images, mm. */
function mixed(mode, slice, { fixed, moving, codes, amount, late, longest }) {
  const out = new Uint8ClampedArray(4 * fixed.length);
  const side = [slice.tall / slice.height, slice.wide / slice.width].map((mm) => mm * amount / longest);
  const grey = mode === "grid" ? 0.75 : 1;
  const wf = INK.fixed.map((c) => Math.min(1, 2 - amount / 50) * c / 255);
  const wm = INK.moving.map((c) => Math.min(1, amount / 50) * c / 255);
  for (let n = 0, row = 0; row < slice.height; row++) {
    for (let column = 0; column < slice.width; column++, n++) {
      const f = fixed[n], m = Math.max(0, moving[n]), o = 4 * n;
      if (mode === "overlay") {
        for (let c = 0; c < 3; c++) out[o + c] = wf[c] * f + wm[c] * m;
      } else if (mode === "difference") {
        const gap = amount * (m - f), ink = gap > 0 ? INK.moving : INK.fixed, size = Math.min(Math.abs(gap), 255) / 255;
        for (let c = 0; c < 3; c++) out[o + c] = ink[c] * size;
      } else if (mode === "folding") {
        const [ink, share] = determinantColour(codes[n], amount / 100);
        for (let c = 0; c < 3; c++) out[o + c] = f * (1 - share) + ink[c] * share;
      } else {
        const first = mode === "checker" ? !(((row + 0.5) * side[0] & 1) ^ ((column + 0.5) * side[1] & 1))
          : mode === "fixed" || (mode === "flicker" && !late);
        out[o] = out[o + 1] = out[o + 2] = first ? f : grey * m;
      }
      out[o + 3] = 255;
    }
  }
  return new ImageData(out, slice.width, slice.height);
}

/* Colour of a determinant's code and how much of it: 0 a fold, 1 to 127 shrinks, 129 to 255 grows, -1 unknown. */
function determinantColour(code, strength) {
  if (code < 0) return [INK.fold, 0];
  if (code === 0) return [INK.fold, strength];
  return [code < 128 ? INK.fixed : INK.moving, strength * Math.min(1, Math.abs(code - 128) / 90)];
}

/* Lines of equal value of a lattice (rows x columns) at the multiples of a step: [x1, y1, x2, y2, ...] in lattice
   units. Marching squares. */
function contours(values, rows, columns, step) {
  const lines = [];
  for (let j = 0; j + 1 < rows; j++) {
    for (let i = 0; i + 1 < columns; i++) {
      const n = j * columns + i;
      const corners = [values[n], values[n + 1], values[n + columns + 1], values[n + columns]];
      const low = Math.min(...corners), high = Math.max(...corners);
      for (let level = Math.ceil(low / step) * step; level < high; level += step) {
        const points = [];
        for (let e = 0; e < 4; e++) {
          const a = corners[e], b = corners[(e + 1) % 4];
          if ((a < level) === (b < level)) continue;
          const t = (level - a) / (b - a);
          points.push(...[[i + t, j], [i + 1, j + t], [i + 1 - t, j + 1], [i, j + 1 - t]][e]);
        }
        lines.push(...points);
      }
    }
  }
  return lines;
}

/* The moving image's regular grid where the displacement, if there is one, puts it: two families of lines in pixels
   of the slice. */
function warpedGrid(slice, fixed, displacement, step) {
  const stride = Math.max(1, Math.ceil(Math.max(slice.height, slice.width) / 128));
  const rows = Math.ceil(slice.height / stride), columns = Math.ceil(slice.width / stride);
  const families = slice.plane.axes.slice(1).map((axis) => ({ axis, values: new Float32Array(rows * columns) }));
  for (let j = 0, n = 0; j < rows; j++) {
    for (let i = 0; i < columns; i++, n++) {
      const world = affine.of(fixed.toWorld, slice.voxel(j * stride, i * stride));
      const u = displacement ? displacement.at(world) : [0, 0, 0];
      const voxel = affine.of(fixed.toVoxel, world.map((value, axis) => value + u[axis]));
      for (const { axis, values } of families) values[n] = voxel[axis] * fixed.spacing[axis];
    }
  }
  return families.flatMap(({ values }) => contours(values, rows, columns, step)).map((value) => value * stride);
}

/* A plane's canvas and slider. */
class PlaneView {
  constructor(plane, fixed, tell) {
    Object.assign(this, { plane, fixed, tell, count: fixed.shape[plane.axes[0]] });
    this.buffer = document.createElement("canvas");
    this.element = make("div", { className: "plane" });
    this.canvas = make("canvas", { tabIndex: 0 }, this.element);
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `${plane.name} slice`);
    if (this.count > 1) {
      const label = make("label", {}, this.element);
      make("span", { textContent: plane.name }, label);
      this.slider = make("input", { type: "range", min: 0, max: this.count - 1 }, label);
      this.slider.addEventListener("input", () => tell.slice(this, Number(this.slider.value)));
      this.output = make("output", {}, label);
    }
    const follow = (event) => { if (event.buttons & 1) this.pick(event); };
    this.canvas.addEventListener("pointerdown", follow);
    this.canvas.addEventListener("pointermove", follow);
    this.canvas.addEventListener("focus", () => tell.active(this));
    this.canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== this.canvas || event.ctrlKey) return;
      event.preventDefault();
      tell.slice(this, "by", Math.sign(event.deltaY));
    }, { passive: false });
  }

  slice(at) { return new Slice(this.fixed, this.plane, at[this.plane.axes[0]]); }

  /* Sizes in CSS pixels: of the box, and pixels a millimetre. */
  fit(width, height, scale) {
    const ratio = window.devicePixelRatio || 1;
    this.canvas.style.height = `${height}px`;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.scale = scale * ratio;
    this.ratio = ratio;
  }

  /* Where the slice lies on the canvas, in its pixels: left, top, and the size of a voxel. */
  frame(slice) {
    const [wide, tall] = [slice.wide * this.scale, slice.tall * this.scale];
    return { left: (this.canvas.width - wide) / 2, top: (this.canvas.height - tall) / 2, wide, tall,
      dx: wide / slice.width, dy: tall / slice.height };
  }

  pick(event) {
    const box = this.canvas.getBoundingClientRect(), slice = this.slice(this.tell.at()), f = this.frame(slice);
    const x = (event.clientX - box.left) * this.ratio, y = (event.clientY - box.top) * this.ratio;
    const within = (value, n) => Math.min(n - 1, Math.max(0, Math.floor(value)));
    this.tell.point(slice.voxel(within((y - f.top) / f.dy, slice.height), within((x - f.left) / f.dx, slice.width)));
  }

  /* Paint an image of the slice, then lines in its pixels, the letters of its sides, the cross and a word. */
  draw(slice, image, at, { lines = [], cross = true, word = "" }) {
    const context = this.canvas.getContext("2d"), f = this.frame(slice), r = this.ratio;
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.buffer.width = slice.width;
    this.buffer.height = slice.height;
    this.buffer.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.buffer, f.left, f.top, f.wide, f.tall);
    const x = (column) => f.left + (column + 0.5) * f.dx, y = (row) => f.top + (row + 0.5) * f.dy;
    this.stroke(context, `rgb(${INK.moving.join(" ")})`, 1.2 * r, (path) => {
      for (let n = 0; n < lines.length; n += 4) {
        path.moveTo(x(lines[n]), y(lines[n + 1]));
        path.lineTo(x(lines[n + 2]), y(lines[n + 3]));
      }
    });
    if (cross) this.cross(context, f, ...slice.pixel(at), x, y);
    this.write(context, word);
    if (this.slider) {
      this.slider.value = slice.index;
      this.output.textContent = `${slice.index + 1} / ${this.count}`;
    }
  }

  stroke(context, style, width, draw) {
    context.beginPath();
    draw(context);
    context.strokeStyle = style;
    context.lineWidth = width;
    context.stroke();
  }

  cross(context, f, row, column, x, y) {
    const gap = 9 * this.ratio;
    this.stroke(context, "rgb(255 255 255 / 50%)", this.ratio, (path) => {
      for (const [x1, y1, x2, y2] of [[f.left, y(row), x(column) - gap, y(row)],
        [x(column) + gap, y(row), f.left + f.wide, y(row)], [x(column), f.top, x(column), y(row) - gap],
        [x(column), y(row) + gap, x(column), f.top + f.tall]]) {
        if (x2 < x1 || y2 < y1) continue;
        path.moveTo(x1, y1);
        path.lineTo(x2, y2);
      }
    });
  }

  write(context, word) {
    const r = this.ratio, { width, height } = this.canvas, [left, right, top, bottom] = this.plane.letters;
    context.font = `600 ${12 * r}px Arial, system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineWidth = 3 * r;
    context.strokeStyle = "rgb(0 0 0 / 70%)";
    context.fillStyle = "rgb(255 255 255 / 88%)";
    const put = (text, px, py) => { context.strokeText(text, px, py); context.fillText(text, px, py); };
    put(left, 13 * r, height / 2);
    put(right, width - 13 * r, height / 2);
    put(top, width / 2, 13 * r);
    put(bottom, width / 2, height - 12 * r);
    context.textAlign = "left";
    put(word, 10 * r, 14 * r);
  }
}

/* A new element with properties (never markup), in a parent. */
function make(tag, properties = {}, parent = null) {
  const element = Object.assign(document.createElement(tag), properties);
  if (parent) parent.append(element);
  return element;
}
