// Draws one chart of the last hour as SVG: stacked areas, lines, or bands of words.

import { h, put, s, say } from "./dom.js";
import { short } from "./format.js";

/** Room for what stands at the value axis: numbers, or the names of bands. */
const LEFT = { stack: 44, lines: 44, bands: 66 };
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 20;
/** The least width of a column that can be told from the next, in pixels. */
const COLUMN = 3;
/** Between two marks of the time axis, in minutes; the first that leaves no more than so many marks. */
const STEPS_MIN = [1, 2, 5, 10, 15];
const MARKS_MAX = 7;

/**
 * `kind` is `stack`, `lines` or `bands`. `series(samples)` gives `[{name, tone, values}]`, of bands words instead of
 * numbers; null where there is none. `moved(fraction)` is told where the pointer is.
 */
export class Chart {
  #options;
  #width = 0;
  #left;
  #data;
  #svg;
  #cursor;

  constructor({ title, note, kind, series, height = 150, isLog = false, moved }) {
    this.#options = { title, kind, series, height, isLog };
    this.#left = LEFT[kind];
    this.#cursor = s("line", { class: "cursor", y1: TOP, y2: height - BOTTOM, visibility: "hidden" });
    this.#svg = s("svg", {
      role: "img", "aria-label": title, height,
      onpointermove: (event) => moved((event.offsetX - this.#left) / (this.#width - this.#left - RIGHT)),
      onpointerleave: () => moved(undefined),
    });
    this.legend = h("ul", { class: "legend" });
    this.element = h("figure", { class: "panel chart" },
      h("figcaption", {}, h("h2", {}, title), note && h("span", { class: "quiet" }, note), this.legend), this.#svg);
    new ResizeObserver(([entry]) => {
      if (this.#width === Math.round(entry.contentRect.width)) return;
      this.#width = Math.round(entry.contentRect.width);
      this.#draw();
    }).observe(this.element);
  }

  /** `samples` from `from` to `to`, in ms, each of which tells of `every` ms. */
  update(data) {
    this.#data = data;
    this.#draw();
  }

  /** Shows where the pointer is over any of the charts. */
  point(at) {
    if (at === undefined || !this.#data) {
      this.#cursor.setAttribute("visibility", "hidden");
      return;
    }
    const x = this.#x(at);
    for (const [name, value] of [["x1", x], ["x2", x], ["visibility", "visible"]]) this.#cursor.setAttribute(name, value);
  }

  #x(at) {
    const { from, to } = this.#data;
    return this.#left + ((at - from) / (to - from)) * (this.#width - this.#left - RIGHT);
  }

  #draw() {
    if (!this.#data || this.#width < 100) return;
    const { samples } = this.#data;
    const { kind, series, height } = this.#options;
    this.#svg.setAttribute("width", this.#width);
    this.#svg.setAttribute("viewBox", `0 0 ${this.#width} ${height}`);
    const all = series(samples);
    const drawn = { stack: () => this.#stack(all), lines: () => this.#lines(all), bands: () => this.#bands(all) }[kind]();
    put(this.#svg, this.#timeAxis(), drawn, this.#cursor);
    this.#describe(all);
  }

  #describe(all) {
    const last = ({ values }) => values.at(-1) ?? "–";
    const told = (value) => (typeof value === "number" ? short(value) : value);
    this.#svg.setAttribute("aria-label", `${this.#options.title}; last: ${all.map((it) => `${it.name} ${told(last(it))}`).join(", ") || "nothing"}`);
    if (this.#options.kind === "bands") return;
    // Made anew only when there are others.
    const names = all.map(({ name }) => name).join();
    if (this.legend.dataset.names !== names) {
      this.legend.dataset.names = names;
      put(this.legend, all.map(({ name, tone }) => h("li", {},
        s("svg", { class: `key tone-${tone}`, viewBox: "0 0 16 10", "aria-hidden": "true" },
          this.#options.kind === "stack" ? s("rect", { width: 16, height: 10, class: "area" }) : s("path", { d: "M0 5H16", class: "curve" })),
        name, h("b", {}))));
    }
    this.legend.querySelectorAll("b").forEach((value, index) => say(value, told(last(all[index]))));
  }

  #timeAxis() {
    const { from, to } = this.#data;
    const bottom = this.#options.height - BOTTOM;
    const minutes = (to - from) / 60_000;
    const step = (STEPS_MIN.find((it) => minutes / it <= MARKS_MAX) ?? 15) * 60_000;
    const marks = [];
    for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
      const x = this.#x(at);
      if (x > this.#width - 18 || x < this.#left + 4) continue;
      const time = new Date(at).toTimeString().slice(0, 5);
      marks.push(s("line", { class: "grid", x1: x, x2: x, y1: TOP, y2: bottom }), s("text", { x, y: bottom + 14, class: "middle" }, time));
    }
    return marks;
  }

  /** The grid, and the function that says where a value is. */
  #valueAxis(most) {
    const { height, isLog } = this.#options;
    const [top, bottom] = [TOP, height - BOTTOM];
    const marks = isLog ? decades(most) : even(most);
    const [low, high] = [marks[0], marks.at(-1)];
    const part = isLog
      ? (value) => Math.log(Math.max(value, low) / low) / Math.log(high / low)
      : (value) => value / high;
    const y = (value) => bottom - part(value) * (bottom - top);
    const lines = marks.map((mark) => [
      s("line", { class: "grid", x1: this.#left, x2: this.#width - RIGHT, y1: y(mark), y2: y(mark) }),
      s("text", { x: this.#left - 6, y: y(mark) + 4, class: "end" }, short(mark)),
    ]);
    return { y, lines };
  }

  #stack(fine) {
    const { samples, every, all } = coarse(this.#data, fine, (this.#width - this.#left - RIGHT) / COLUMN);
    const sums = samples.map((_, index) => all.reduce((sum, { values }) => sum + values[index], 0));
    const { y, lines } = this.#valueAxis(Math.max(...sums, 0));
    const floor = samples.map(() => 0);
    const areas = all.map(({ tone, values }) => {
      const [upper, lower] = [[], []];
      samples.forEach(({ at_ms: at }, index) => {
        const [begin, end] = [this.#x(at - every), this.#x(at)].map((x) => Math.max(x, this.#left).toFixed(1));
        const base = floor[index];
        floor[index] += values[index];
        const [high, low] = [y(floor[index]).toFixed(1), y(base).toFixed(1)];
        upper.push(`${begin} ${high}`, `${end} ${high}`);
        lower.push(`${begin} ${low}`, `${end} ${low}`);
        // A gap in what is known is a gap in the picture.
        if (samples[index + 1]?.at_ms - at > 2 * every) {
          const gap = [`${end} ${y(0)}`, `${this.#x(samples[index + 1].at_ms - every).toFixed(1)} ${y(0)}`];
          upper.push(...gap);
          lower.push(...gap);
        }
      });
      return s("path", { class: `area tone-${tone}`, d: upper.length > 0 ? `M${upper.join("L")}L${lower.reverse().join("L")}Z` : "" });
    });
    return [lines, areas];
  }

  #lines(all) {
    const { samples, every } = this.#data;
    const most = Math.max(...all.flatMap(({ values }) => values.filter((value) => value !== null)), 0);
    const { y, lines } = this.#valueAxis(most);
    const curves = all.map(({ tone, values }) => {
      let d = "";
      let isPenDown = false;
      samples.forEach(({ at_ms: at }, index) => {
        const value = values[index];
        if (index > 0 && at - samples[index - 1].at_ms > 2 * every) isPenDown = false;
        if (value !== null) d += `${isPenDown ? "L" : "M"}${Math.max(this.#x(at), this.#left).toFixed(1)} ${y(value).toFixed(1)}`;
        // One alone would not be seen.
        if (value !== null && !isPenDown) d += "h1";
        isPenDown = value !== null;
      });
      return s("path", { class: `curve tone-${tone}`, d });
    });
    return [lines, curves];
  }

  /** A row each, with a piece wherever the word changes, and the word in it if there is room. */
  #bands(all) {
    const { samples, every } = this.#data;
    const height = (this.#options.height - TOP - BOTTOM) / all.length;
    return all.map(({ name, values, tones }, row) => {
      const top = TOP + row * height;
      const pieces = [];
      values.forEach((word, index) => {
        const { at_ms: at } = samples[index];
        const last = pieces.at(-1);
        if (last?.word === word && at - last.to <= 2 * every) last.to = at;
        else pieces.push({ word, from: at - every, to: at });
      });
      return [
        s("text", { x: this.#left - 6, y: top + height / 2 + 4, class: "end" }, name),
        pieces.map(({ word, from, to }) => {
          const x = Math.max(this.#x(from), this.#left);
          const width = Math.max(this.#x(to) - x, 1.5);
          return [
            s("rect", { class: `band tone-${tones[word]}`, x, y: top + 2, width, height: height - 4 }),
            width > word.length * 8 && s("text", { class: "on-band", x: x + 6, y: top + height / 2 + 4 }, word),
          ];
        }),
      ];
    });
  }
}

/** Means over as many samples as make for at most `columns` of them. */
function coarse({ samples, every, from, to }, all, columns) {
  const factor = Math.ceil((to - from) / every / columns);
  // Whole columns of time, so that they stay as they are while the hour moves on.
  const column = ({ at_ms: at }) => Math.ceil(at / (every * factor));
  const groups = [...Map.groupBy(samples.map((sample, index) => ({ sample, index })), ({ sample }) => column(sample)).values()];
  const mean = (values, group) => group.reduce((sum, { index }) => sum + values[index], 0) / group.length;
  return {
    every: every * factor,
    samples: groups.map((group) => group.at(-1).sample),
    all: all.map((it) => ({ ...it, values: groups.map((group) => mean(it.values, group)) })),
  };
}

/** Marks from zero to at least `most`, evenly. What is counted is whole. */
function even(most) {
  const rough = Math.max(most, 3) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((it) => it * power).find((it) => it >= rough);
  return [0, 1, 2, 3].map((it) => it * step);
}

/** Marks at powers of ten, from a tenth of a millisecond. */
function decades(most) {
  const marks = [0.1, 1, 10];
  while (marks.at(-1) < most) marks.push(marks.at(-1) * 10);
  return marks;
}
