/* What an agent thinks of its next actions, as bars; the one that it takes is marked. */

const MOST_CHOICES = 24;

class Choices {
  constructor(title, parent) {
    this.title = title;
    this.figure = make("figure", { className: "choices" }, parent);
  }

  /* choices: [{ name, value, taken }]. Where there are many, the best ones. */
  show(choices) {
    this.figure.hidden = !choices.length;
    const known = choices.map(({ value }) => value).filter((value) => value !== null);
    const low = Math.min(0, ...known), span = Math.max(0, ...known) - low || 1;
    const kept = choices.length <= MOST_CHOICES ? choices
      : [...choices].sort((a, b) => b.value - a.value).slice(0, MOST_CHOICES);
    const more = kept.length < choices.length ? `, the ${kept.length} best of ${choices.length}` : "";
    this.figure.replaceChildren(make("figcaption", { textContent: this.title + more }));
    const list = make("ul", {}, this.figure);
    for (const { name, value, taken } of kept) {
      const item = make("li", { className: taken ? "taken" : "" }, list);
      make("span", { textContent: name }, item);
      const bar = make("i", {}, make("span", {}, item));
      bar.style.marginLeft = `${(100 * (Math.min(0, value) - low)) / span}%`;
      bar.style.width = `${(100 * Math.abs(value)) / span}%`;
      make("b", { textContent: short(value) }, item);
    }
  }
}
