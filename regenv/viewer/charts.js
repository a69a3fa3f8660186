/* Curves as SVG, drawn anew when their width changes. */

function svg(tag, attributes, parent, text = "") {
  const element = document.createElementNS("http:" + "//www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  parent.append(element);
  return element;
}

/* A number in few characters. */
function short(value) {
  if (value === null || value === undefined) return "\u2013";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(size >= 1000 ? 6 : 4)));
}

/* Round numbers between two values, about so many. */
function ticks(low, high, count) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const out = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + 1e-9 * step; value += step) out.push(value);
  return out.map((value) => Number(value.toPrecision(12)));
}

/* A curve of values (null: a gap) over their numbers.
   places: text under each value and a dot and a number at it; without them the axis counts.
   bands: [first, last] of stages to tell apart. pick: called with the number that was clicked. */
class Chart {
  constructor(title, values, { places = null, bands = [], pick = null, height = 116 } = {}) {
    Object.assign(this, { values, places, bands, pick, height });
    this.figure = make("figure");
    make("figcaption", { textContent: title }, this.figure);
    this.root = svg("svg", { class: pick ? "chart pick" : "chart", role: "img", "aria-label": title }, this.figure);
    if (pick) {
      const follow = (event) => { if (event.buttons & 1) pick(this.nearest(event.clientX)); };
      this.root.addEventListener("pointerdown", follow);
      this.root.addEventListener("pointermove", follow);
    }
    new ResizeObserver(() => this.draw()).observe(this.figure);
  }

  draw() {
    const width = this.figure.clientWidth;
    if (!width || width === this.width) return;
    this.width = width;
    const { root, height, values, places } = this, known = values.filter((value) => value !== null);
    let [low, high] = [Math.min(...known), Math.max(...known)];
    const room = (high - low || Math.abs(high) || 1) * (places ? 0.16 : 0.06);
    [low, high] = [low - room, high + room];
    this.left = 46;
    this.right = width - (places ? 34 : 8);
    const top = places ? 16 : 6, bottom = height - 20;
    this.y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
    root.replaceChildren();
    root.setAttribute("height", height);
    root.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.bands.forEach(([first, last], number) => {
      if (number % 2) return;
      const from = this.x(first - (first ? 0.5 : 0)), to = this.x(last + (last + 1 < values.length ? 0.5 : 0));
      svg("rect", { class: "band", x: from, width: Math.max(0, to - from), y: top, height: bottom - top }, root);
    });
    for (const value of ticks(low, high, 4)) {
      svg("line", { class: "rule", x1: this.left, x2: this.right, y1: this.y(value), y2: this.y(value) }, root);
      svg("text", { x: this.left - 7, y: this.y(value) + 4, "text-anchor": "end" }, root, short(value));
    }
    this.axis(root, height - 4);
    svg("path", { class: "curve", d: this.path() }, root);
    if (places) this.dots(root);
    this.cursor = svg("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" }, root);
    if (this.marked !== undefined) this.mark(this.marked);
  }

  x(number) {
    const inset = this.places ? 32 : 0, last = Math.max(1, this.values.length - 1);
    return this.left + inset + (number / last) * (this.right - this.left - inset);
  }

  nearest(clientX) {
    const at = clientX - this.root.getBoundingClientRect().left, last = this.values.length - 1;
    return Math.min(last, Math.max(0, Math.round(((at - this.left) / (this.right - this.left)) * last)));
  }

  path() {
    let pen = "M";
    return this.values.map((value, number) => {
      if (value === null) { pen = "M"; return ""; }
      const piece = `${pen}${this.x(number).toFixed(1)} ${this.y(value).toFixed(1)}`;
      pen = "L";
      return piece;
    }).join("");
  }

  axis(root, y) {
    if (this.places) {
      this.places.forEach((place, n) => svg("text", { x: this.x(n), y, "text-anchor": "middle" }, root, place));
      return;
    }
    const whole = ticks(0, this.values.length - 1, 6).filter(Number.isInteger);
    for (const number of whole) svg("text", { x: this.x(number), y, "text-anchor": "middle" }, root, String(number));
  }

  dots(root) {
    this.values.forEach((value, n) => {
      if (value === null) return;
      svg("circle", { class: "dot", cx: this.x(n), cy: this.y(value), r: 4 }, root);
      svg("text", { class: "value", x: this.x(n), y: this.y(value) - 9, "text-anchor": "middle" }, root, short(value));
    });
  }

  /* Put the cursor at a number, or away (null). */
  mark(number) {
    this.marked = number;
    if (!this.cursor) return;
    this.cursor.setAttribute("visibility", number === null ? "hidden" : "visible");
    if (number === null) return;
    this.cursor.setAttribute("x1", this.x(number));
    this.cursor.setAttribute("x2", this.x(number));
  }
}
