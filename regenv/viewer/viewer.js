/* The page: what is looked at, its controls, its keys, and what is told beside the pictures. */

const $ = (id) => document.getElementById(id);
const ARROWS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];
const NARROW = 700, TALLEST = 560, GAP = 10;      // CSS pixels: width below which planes stand one below the other
const KEYS = [["Space", "play or stop the path"], ["\u2190 \u2192", "one step of the path back or on"],
  ["\u2191 \u2193", "slice of the plane clicked last"], ["1 2 \u2026", "how the images are shown"],
  ["\u2212 +", "less or more of it"], ["B", "as the files lie"], ["P", "the path"], ["R", "the result"],
  ["X", "cross on or off"]];

class Viewer {
  constructor(page, volumes) {
    Object.assign(this, { page, ...volumes });
    this.steps = page.film.steps;
    const dense = this.displacement || this.displacements.some(Boolean);
    this.modes = Object.keys(MODES).filter((name) => dense || !MODES[name].dense);
    const first = page.opens === "path" && this.steps.length ? 0 : this.steps.length - 1;
    this.state = { mode: "overlay", source: page.opens, step: Math.max(0, first), cross: true,
      late: false, at: this.fixed.shape.map((n) => Math.floor(n / 2)), amounts: {} };
    for (const name of this.modes) this.state.amounts[name] = (MODES[name].slider || [])[5];
    const tell = { at: () => this.state.at, slice: (view, index, by) => this.toSlice(view, index, by),
      point: (point) => this.set({ at: point }), active: (view) => { this.active = view; } };
    this.views = page.planes.map((plane) => new PlaneView(plane, this.fixed, tell));
    this.active = this.views[0];
    $("planes").append(...this.views.map((view) => view.element));
    this.buttons();
    this.film();
    this.fromHash();
    addEventListener("hashchange", () => this.fromHash());
    document.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.layout()).observe($("planes"));
    this.layout();
  }

  /* ---- what is looked at */

  set(change) {
    Object.assign(this.state, change);
    if (!this.waiting) this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.draw(); });
  }

  toSlice(view, index, by = 0) {
    const axis = view.plane.axes[0], at = [...this.state.at];
    at[axis] = Math.min(view.count - 1, Math.max(0, index === "by" ? at[axis] + by : index));
    this.active = view;
    this.set({ at });
  }

  toStep(step) {
    if (this.steps.length) this.set({ source: "path", step: Math.min(this.steps.length - 1, Math.max(0, step)) });
  }

  /* #mode=checker&axial=10&source=path&step=3&amount=40&cross=0 */
  fromHash() {
    const given = new URLSearchParams(location.hash.slice(1)), change = { at: [...this.state.at] };
    const count = (name, most) => Math.min(most, Math.max(0, Math.floor(Number(given.get(name)) || 0)));
    if (this.modes.includes(given.get("mode"))) change.mode = given.get("mode");
    if (given.has("source") && this.pose(given.get("source"))) change.source = given.get("source");
    if (given.has("step")) this.toStep(count("step", this.steps.length - 1));
    if (given.has("cross")) change.cross = given.get("cross") !== "0";
    for (const { plane, count: slices } of this.views) {
      const name = plane.name.toLowerCase();
      if (given.has(name)) change.at[plane.axes[0]] = count(name, slices - 1);
    }
    this.set(change);
    if (given.has("amount") && MODES[this.state.mode].slider) this.setAmount(Number(given.get("amount")) || 0);
  }

  setAmount(value) {
    const [, least, most] = MODES[this.state.mode].slider;
    this.set({ amounts: { ...this.state.amounts, [this.state.mode]: Math.min(most, Math.max(least, value)) } });
  }

  /* Fixed world to moving world under a source: result, path, or a pose of the page. */
  pose(source) {
    if (source === "result") return this.page.pullBack;
    if (source === "path") return this.steps.length ? this.steps[this.state.step].pose : null;
    return Object.hasOwn(this.page.poses, source) ? this.page.poses[source] : null;
  }

  /* What comes before the pose that is looked at: a displacement, or nothing. */
  displaced() {
    const { source, step } = this.state;
    return source === "result" ? this.displacement : source === "path" ? this.displacements[step] : null;
  }

  movingAt(slice) {
    const u = this.displaced();
    if (this.state.source === "result") {
      return slice.values((z, y, x) => this.warped.nearest(z, y, x),
        affine.after(this.warped.toVoxel, this.fixed.toWorld));
    }
    if (u) {
      const there = affine.after(this.moving.toVoxel, this.pose(this.state.source));
      return slice.values((x, y, z) => {
        const by = u.at([x, y, z]);
        return this.moving.at(...affine.of(there, [x + by[0], y + by[1], z + by[2]]));
      }, this.fixed.toWorld);
    }
    const map = affine.after(this.moving.toVoxel, affine.after(this.pose(this.state.source), this.fixed.toWorld));
    return slice.values((z, y, x) => this.moving.at(z, y, x), map);
  }

  /* ---- pictures */

  layout() {
    const width = $("planes").clientWidth;
    if (!width) return;
    const sizes = this.views.map(({ plane }) => plane.axes.slice(1).map((axis) => this.fixed.extent(axis)));
    const tall = Math.max(...sizes.map(([down]) => down)), stacked = width < NARROW && sizes.length > 1;
    const wide = stacked ? Math.max(...sizes.map(([, across]) => across)) : sizes.reduce((sum, s) => sum + s[1], 0);
    const scale = Math.min((width - (stacked ? 0 : GAP * (sizes.length - 1))) / wide, TALLEST / tall);
    const widths = sizes.map(([, across]) => (stacked ? Math.min(width, wide * scale) : across * scale));
    $("planes").style.gridTemplateColumns = stacked ? `${widths[0]}px` : widths.map((w) => `${w}px`).join(" ");
    this.views.forEach((view, n) => view.fit(widths[n], (stacked ? sizes[n][0] : tall) * scale, scale));
    this.draw();
  }

  draw() {
    const { mode, at, cross, late, amounts } = this.state;
    const longest = Math.max(...[0, 1, 2].map((axis) => this.fixed.extent(axis)));
    for (const view of this.views) {
      const slice = view.slice(at), fixed = slice.values((z, y, x) => this.fixed.nearest(z, y, x));
      const u = this.displaced(), codes = mode !== "folding" ? null
        : u ? slice.values((z, y, x) => u.determinant.nearest(z, y, x),
          affine.after(u.determinant.toVoxel, this.fixed.toWorld)) : new Float32Array(fixed.length).fill(-1);
      const amount = amounts[mode], moving = this.movingAt(slice);
      const image = mixed(mode, slice, { fixed, moving, codes, amount, late, longest });
      const lines = mode === "grid" ? warpedGrid(slice, this.fixed, u, longest / amounts.grid) : [];
      view.draw(slice, image, at, { lines, cross, word: mode === "flicker" ? (late ? "moving" : "fixed") : "" });
    }
    this.tell();
    this.flicker();
    document.documentElement.dataset.state = "ready";
  }

  flicker() {
    clearTimeout(this.flickering);
    if (this.state.mode !== "flicker") return;
    this.flickering = setTimeout(() => this.set({ late: !this.state.late }), this.state.amounts.flicker);
  }

  /* ---- controls */

  buttons() {
    const segment = (parent, name, label, act) => {
      const button = make("button", { type: "button", textContent: label }, parent);
      button.dataset.name = name;
      button.addEventListener("click", (event) => { act(); if (event.detail) button.blur(); });
    };
    for (const name of this.modes) segment($("modes"), name, MODES[name].label, () => this.set({ mode: name }));
    if (this.pose("before")) segment($("sources"), "before", "Before", () => this.set({ source: "before" }));
    if (this.steps.length) segment($("sources"), "path", "Path", () => this.toStep(this.state.step));
    segment($("sources"), "result", "Result", () => this.set({ source: "result" }));
    const slider = $("option").querySelector("input");
    slider.addEventListener("input", () => this.setAmount(Number(slider.value)));
    for (const [keys, does] of KEYS.filter(([key]) => key !== "B" || this.pose("before"))) {
      const row = make("div", {}, $("keys")), term = make("dt", {}, row);
      for (const key of keys.split(" ")) make("kbd", { textContent: key }, term);
      make("dd", { textContent: does }, row);
    }
  }

  film() {
    $("film").hidden = this.steps.length < 2;
    this.charts = [];
    if (this.steps.length < 2) return;
    this.bands = [];
    this.steps.forEach((step, n) => {
      const band = this.bands[this.bands.length - 1];
      if (band && step.stage === this.steps[n - 1].stage) band[1] = n;
      else this.bands.push([n, n]);
    });
    for (const [first, last] of this.bands) {
      const name = this.steps[first].stage;
      const share = (last - first + 1) / this.steps.length;
      const label = make("span", { textContent: share > 0.07 ? name : "\u00a0", title: name }, $("stages"));
      label.style.flex = `${last - first + 1} 1 0`;
    }
    $("step").max = this.steps.length - 1;
    $("step").addEventListener("input", () => { this.play(false); this.toStep(Number($("step").value)); });
    $("play").addEventListener("click", (event) => { this.play(!this.playing); if (event.detail) $("play").blur(); });
    this.play(false);
    const pick = (step) => { this.play(false); this.toStep(step); };
    for (const name of this.page.film.numbers) {
      const values = this.steps.map((step) => step.numbers[name] ?? null);
      this.charts.push(new Chart(`${name}, over the steps`, values, { bands: this.bands, pick }));
    }
    $("curves").append(...this.charts.map((chart) => chart.figure));
    if (this.page.film.choices) this.choices = new Choices(this.page.film.choices, $("choices"));
  }

  play(on) {
    clearInterval(this.playing);
    this.playing = 0;
    const last = this.steps.length - 1;
    if (on) {
      const begun = this.state.source !== "path" || this.state.step >= last ? 0 : this.state.step;
      this.toStep(begun);
      this.playing = setInterval(() => {
        if (this.state.step >= last || this.state.source !== "path") this.play(false);
        else this.toStep(this.state.step + 1);
      }, Math.min(400, Math.max(50, 12000 / this.steps.length)));
    }
    const icon = svg("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" }, make("span"));
    svg("path", { d: on ? "M2 1h4v12H2zM8 1h4v12H8z" : "M3 0.5v13l10.5-6.5z" }, icon);
    $("play").replaceChildren(icon);
    $("play").setAttribute("aria-label", on ? "Stop the path" : "Play the path");
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { target, key } = event;
    if (target.type === "range" && (ARROWS.includes(key) || ["Home", "End"].includes(key))) return;
    if (target.tagName === "BUTTON" && key === " ") return;
    const slider = MODES[this.state.mode].slider, acts = {
      " ": () => this.steps.length > 1 && this.play(!this.playing),
      ArrowLeft: () => this.toStep(this.state.step - 1), ArrowRight: () => this.toStep(this.state.step + 1),
      ArrowUp: () => this.toSlice(this.active, "by", 1), ArrowDown: () => this.toSlice(this.active, "by", -1),
      b: () => this.pose("before") && this.set({ source: "before" }), r: () => this.set({ source: "result" }),
      p: () => this.toStep(this.state.step), x: () => this.set({ cross: !this.state.cross }),
      "-": () => slider && this.setAmount(this.state.amounts[this.state.mode] - (slider[2] - slider[1]) / 20),
      "+": () => slider && this.setAmount(this.state.amounts[this.state.mode] + (slider[2] - slider[1]) / 20),
    };
    acts["="] = acts["+"];
    const name = key.length === 1 ? key.toLowerCase() : key, number = Number(key);
    if (number >= 1 && number <= this.modes.length) this.set({ mode: this.modes[number - 1] });
    else if (Object.hasOwn(acts, name)) acts[name]();
    else return;
    event.preventDefault();
  }

  /* ---- words about the pictures */

  tell() {
    const { mode, source, step, amounts } = this.state, slider = MODES[mode].slider;
    for (const [id, chosen] of [["modes", mode], ["sources", source]]) {
      for (const button of $(id).children) button.setAttribute("aria-pressed", String(button.dataset.name === chosen));
    }
    $("option").classList.toggle("used", Boolean(slider));
    if (slider) {
      const [name, input, output] = $("option").children;
      name.textContent = slider[0];
      Object.assign(input, { min: slider[1], max: slider[2], step: slider[3], value: amounts[mode] });
      output.textContent = `${short(amounts[mode])} ${slider[4]}`;
    }
    this.legend(mode);
    const told = this.steps[step], words = told
      ? [told.action, ...this.page.film.numbers.map((name) => `${name}: ${short(told.numbers[name] ?? null)}`)] : [];
    $("showing").textContent = source === "result" ? "The result" : source === "before" ? "As the files lie"
      : source === "path" ? `${told.stage}, step ${told.step}` : `Candidate ${source}`;
    $("told").replaceChildren(make("b", { textContent: told ? `${told.stage}, step ${told.step}` : "" }),
      ...words.filter(Boolean).map((textContent) => make("span", { textContent })));
    $("step").value = step;
    $("film").classList.toggle("idle", source !== "path");
    [...$("stages").children].forEach((span, n) => span.classList.toggle("on", source === "path"
      && step >= this.bands[n][0] && step <= this.bands[n][1]));
    for (const chart of this.charts) chart.mark(source === "path" ? step : null);
    if (this.choices) this.choices.show(told.choices);
    for (const row of document.querySelectorAll("tr.pick")) {
      row.setAttribute("aria-selected", String(row.dataset.pose === source));
    }
    this.reading();
  }

  legend(mode) {
    const of = { overlay: [["fixed", this.fixed.name], ["moving", this.moving.name]],
      difference: [["fixed", "fixed is brighter"], ["moving", "moving is brighter"]],
      grid: [["moving", "the moving image's grid"]],
      folding: [["fixed", "shrinks (to 1/4)"], ["moving", "grows (to 4 times)"], ["fold", "folds"]] }[mode] || [];
    $("legend").replaceChildren(...of.map(([ink, text]) => {
      const span = make("span");
      make("i", {}, span).style.background = `rgb(${INK[ink].join(" ")})`;
      span.append(text);
      return span;
    }));
  }

  /* The point under the cross in both worlds, and both intensities there. */
  reading() {
    const { at, source } = this.state, world = affine.of(this.fixed.toWorld, at);
    const map = this.displaced(), u = map ? map.at(world) : [0, 0, 0];
    const there = affine.of(this.pose(source), world.map((value, axis) => value + u[axis]));
    const ndim = this.page.planes.length > 1 ? 3 : 2;
    const mm = (point) => `(${point.slice(0, ndim).map((v) => v.toFixed(1)).join(", ")})`;
    const value = source === "result" ? this.warped.nearest(...affine.of(this.warped.toVoxel, world))
      : this.moving.at(...affine.of(this.moving.toVoxel, there));
    const seen = value < 0 ? "outside" : "intensity " + short(Number(this.moving.intensity(value).toPrecision(3)));
    const fixed = short(Number(this.fixed.intensity(this.fixed.nearest(...at)).toPrecision(3)));
    $("reading").textContent = `fixed ${mm(world)} mm, intensity ${fixed} \u2192 moving ${mm(there)} mm, ${seen}`;
  }
}

/* ---- what is told beside the pictures */

function tellVerdict(verdict) {
  $("verdict").hidden = $("why").hidden = !verdict;
  if (!verdict) return;
  $("verdict").classList.add(...["aligned", "doubtful", "failed"].filter((state) => state === verdict.state));
  const [state, sure] = $("verdict").children;
  state.textContent = verdict.state.charAt(0).toUpperCase() + verdict.state.slice(1);
  sure.textContent = verdict.probability === null ? ""
    : `aligned with probability ${(100 * verdict.probability).toFixed(0)} %`;
  for (const reason of verdict.reasons) make("li", { textContent: reason }, $("reasons"));
  for (const [name, value] of Object.entries(verdict.evidence)) {
    const row = make("div", {}, $("evidence"));
    make("dt", { textContent: name }, row);
    make("dd", { textContent: short(value) }, row);
  }
}

function tellTable(table, viewer) {
  const card = make("section", { className: "card" }), numeric = (text) => /^[-+\d.,% ]+$/.test(text);
  const plain = table.rows.flat().every(numeric);
  const column = (n) => ((n || plain) && table.rows.every((cells) => numeric(cells[n])) ? "number" : "");
  make("h2", { textContent: table.title }, card);
  const body = make("table", {}, make("div", { className: "scroll" }, card));
  const line = (cells, tag, parent) => {
    const row = make("tr", {}, parent);
    cells.forEach((text, n) => make(tag, { textContent: text, className: text.length > 24 ? "long" : column(n) }, row));
    return row;
  };
  line(table.head, "th", make("thead", {}, body));
  const rows = make("tbody", {}, body);
  table.rows.forEach((cells, n) => {
    const row = line(cells, "td", rows), pose = table.poses[n];
    if (!pose) return;
    row.className = "pick";
    row.dataset.pose = pose;
    row.tabIndex = 0;
    row.addEventListener("click", () => viewer.set({ source: pose }));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") viewer.set({ source: pose }); });
  });
  card.classList.toggle("whole", table.rows.flat().some((text) => text.length > 40));
  if (table.note) make("p", { className: "small", textContent: table.note }, card);
  return card;
}

async function show() {
  const page = JSON.parse($("data").textContent);
  document.title = page.title;
  $("kind").textContent = page.kind;
  for (const piece of page.title.split(/(?<=[_.-])/)) $("title").append(piece, make("wbr"));
  $("subtitle").textContent = page.subtitle;
  tellVerdict(page.verdict);
  for (const { name, value, detail } of page.facts) {
    const item = make("li", {}, $("facts"));
    make("span", { textContent: name }, item);
    make("b", { textContent: value }, item);
    make("span", { textContent: detail }, item);
  }
  $("charts").append(...page.curves.map(({ title, places, values }) => {
    const card = make("section", { className: "card" });
    card.append(new Chart(title, values, { places, height: 170 }).figure);
    return card;
  }));
  $("remarks").hidden = !page.notes.length;
  for (const note of page.notes) make("li", { textContent: note }, $("notes"));
  const [fixed, moving, warped] = await Promise.all([page.fixed, page.moving, page.warped].map((v) => Volume.of(v)));
  const displacement = page.displacement ? await Displacement.of(page.displacement) : null;
  const displacements = await Promise.all(page.film.steps.map((step) => (step.displacement
    ? Displacement.of(step.displacement) : null)));
  const viewer = new Viewer(page, { fixed, moving, warped, displacement, displacements });
  $("tables").append(...page.tables.map((table) => tellTable(table, viewer)));
  viewer.tell();
  return viewer;
}

const opened = show();
opened.catch((error) => {
  $("trouble").hidden = false;
  $("trouble").textContent = `The pictures cannot be shown (${error}). `
    + "Firefox 113, Chrome 80, Safari 16.4 or a later browser is needed.";
  document.documentElement.dataset.state = "failed";
});
