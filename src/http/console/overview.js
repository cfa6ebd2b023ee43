// How the bridge does: what it counts now, the last hour, the last commands.

import { ask } from "./api.js";
import { Chart } from "./chart.js";
import { arrange, badge, h, put, say } from "./dom.js";
import { clock, count, duration, short } from "./format.js";
import { HOUR_MS, total } from "./stats.js";
import { timeline } from "./timeline.js";
import * as words from "./words.js";

/** A bridge that has just started has no hour yet; less than this would show noise only. */
const SPAN_MIN_MS = 2 * 60_000;
const COMMANDS = 20;
const COMMANDS_MS = 5_000;

const perSecond = (samples, everySeconds) => (word) => samples.map(({ outcomes }) => (outcomes[word] ?? 0) / everySeconds);
const valuesOf = (samples, field) => samples.map((sample) => sample[field] ?? null);

export class OverviewView {
  title = "Overview";
  #fleet;
  #stats;
  #link;
  #isShown = false;
  #tiles = new Map();
  #charts;
  #moment;
  #told;
  #table;
  #commands;
  #items = new Map();

  constructor({ fleet, stats, link }) {
    this.#fleet = fleet;
    this.#stats = stats;
    this.#link = link;
    this.#charts = this.#makeCharts();
    this.#moment = h("input", { type: "range", id: "moment", min: 0, max: 0, value: 0, oninput: () => this.#point(Number(this.#moment.value)) });
    this.#told = h("p", { class: "told" });
    this.#table = h("details", { class: "panel", ontoggle: () => this.#drawTable() }, h("summary", {}, "The last hour as a table"), h("div", { class: "scroll" }));
    this.#commands = h("ol", { class: "commands" });
    const tile = (name) => {
      const value = h("dd", {}, "–");
      this.#tiles.set(name, value);
      return h("div", { class: "panel" }, h("dt", {}, name), value);
    };
    this.element = h("div", { class: "overview" },
      h("h1", { class: "only-heard" }, "Overview"),
      h("dl", { class: "tiles" }, ["Devices", "Silent", "Per second", "Latency p99", "In hand", "In lanes", "Parked", "Undelivered"].map(tile)),
      h("div", { class: "charts" }, this.#charts.map((chart) => chart.element)),
      h("div", { class: "row moment" }, h("label", { for: "moment" }, "Moment"), this.#moment, this.#told),
      this.#table,
      h("section", { class: "panel" }, h("h2", {}, "Last commands"), this.#commands));
    stats.addEventListener("change", () => this.#drawTiles());
    stats.addEventListener("history", () => this.#drawCharts());
    setInterval(() => this.#lookAtCommands(), COMMANDS_MS);
  }

  show() {
    this.#isShown = true;
    this.#drawTiles();
    this.#drawCharts();
    this.#lookAtCommands();
  }

  hide() {
    this.#isShown = false;
  }

  #makeCharts() {
    const moved = (fraction) => this.#pointAt(fraction);
    const stats = this.#stats;
    const curve = (field, name, tone) => (samples) => [{ name, tone, values: valuesOf(samples, field) }];
    const state = (samples, field) => samples.map((sample) => (sample[field] ? "connected" : "away"));
    const tones = { connected: "good", away: "bad" };
    return [
      new Chart({
        title: "Commands per second", note: "by outcome", kind: "stack", moved,
        series: (samples) => {
          const values = perSecond(samples, stats.everySeconds);
          const seen = words.OUTCOME_WORDS.filter((word) => samples.some(({ outcomes }) => outcomes[word] > 0));
          return seen.map((word) => ({ name: word, tone: word, values: values(word) }));
        },
      }),
      new Chart({
        title: "Latency in ms", note: "from arrival to delivery, logarithmic", kind: "lines", isLog: true, moved,
        series: (samples) => [...curve("p50_ms", "p50", "p50")(samples), ...curve("p99_ms", "p99", "p99")(samples)],
      }),
      new Chart({ title: "Devices connected", kind: "lines", moved, height: 110, series: curve("devices", "devices", "devices") }),
      new Chart({ title: "Commands in lanes", note: "waiting for devices that do not read", kind: "lines", moved, height: 110, series: curve("lanes", "waiting", "lanes") }),
      new Chart({
        title: "Broker connections", kind: "bands", moved, height: 84,
        series: (samples) => [
          { name: "consumer", values: state(samples, "consumer"), tones },
          { name: "publisher", values: state(samples, "publisher"), tones },
        ],
      }),
    ];
  }

  #drawTiles() {
    const { now, rate, samples } = this.#stats;
    if (!this.#isShown || !now) return;
    const p99 = samples.findLast((sample) => typeof sample.p99_ms === "number")?.p99_ms;
    const values = {
      Devices: count(now.devices), Silent: count(now.silent ?? this.#fleet.silent),
      "Per second": rate === undefined ? "–" : short(rate), "Latency p99": p99 === undefined ? "–" : duration(p99),
      "In hand": count(now.unsettled), "In lanes": count(now.lanes), Parked: count(now.parked), Undelivered: count(now.undelivered),
    };
    for (const [name, value] of Object.entries(values)) say(this.#tiles.get(name), value);
  }

  #drawCharts() {
    const { samples, everySeconds } = this.#stats;
    if (!this.#isShown || samples.length === 0) return;
    const every = everySeconds * 1000;
    const to = samples.at(-1).at_ms;
    const from = Math.max(Math.min(samples[0].at_ms - every, to - SPAN_MIN_MS), to - HOUR_MS);
    this.span = { from, to };
    for (const chart of this.#charts) chart.update({ samples, from, to, every });
    // Whoever stands at the end stays there.
    const isAtEnd = this.#moment.value === this.#moment.max;
    this.#moment.max = samples.length - 1;
    if (isAtEnd) this.#moment.value = this.#moment.max;
    this.#tell(samples[this.#moment.value] ?? samples.at(-1));
    this.#drawTable();
  }

  /** The pointer is over a chart, so far from its left. */
  #pointAt(fraction) {
    const { samples } = this.#stats;
    if (!this.span) return;
    if (fraction === undefined) {
      this.#charts.forEach((chart) => chart.point(undefined));
      this.#moment.value = this.#moment.max;
      this.#tell(samples.at(-1));
      return;
    }
    const at = this.span.from + fraction * (this.span.to - this.span.from);
    const index = samples.findIndex((sample) => sample.at_ms >= at);
    this.#point(index < 0 ? samples.length - 1 : index);
  }

  #point(index) {
    const sample = this.#stats.samples[index];
    if (!sample) return;
    this.#moment.value = index;
    this.#charts.forEach((chart) => chart.point(sample.at_ms));
    this.#tell(sample);
  }

  #tell(sample) {
    const rates = Object.entries(sample.outcomes).filter(([, number]) => number > 0)
      .map(([word, number]) => `${word} ${short(number / this.#stats.everySeconds)}/s`);
    const latency = typeof sample.p50_ms === "number" ? `p50 ${duration(sample.p50_ms)}, p99 ${duration(sample.p99_ms)}` : "no latency";
    const told = `${clock(sample.at_ms)}: ${rates.join(", ") || "no commands"}; ${latency}; ${count(sample.devices)} devices; ${count(sample.lanes)} in lanes; broker ${brokerWord(sample)}`;
    say(this.#told, told);
    this.#moment.setAttribute("aria-valuetext", told);
  }

  /** A row a minute. */
  #drawTable() {
    if (!this.#table.open) return;
    const { samples } = this.#stats;
    const minutes = Map.groupBy(samples, ({ at_ms: at }) => Math.floor(at / 60_000));
    const names = ["Minute", "Commands", "Not delivered", "p50", "p99, most", "Devices", "In lanes", "Broker"];
    const most = (some, field) => Math.max(...some.map((sample) => sample[field] ?? -1));
    const time = (ms) => (ms < 0 ? "–" : duration(ms));
    const rows = [...minutes].reverse().map(([minute, some]) => {
      const bad = some.reduce((sum, { outcomes }) => sum + words.OUTCOME_WORDS.filter((word) => !words.isDelivered(word) && word !== "parked").reduce((all, word) => all + (outcomes[word] ?? 0), 0), 0);
      const cells = [
        count(some.reduce((sum, { outcomes }) => sum + total(outcomes), 0)), count(bad), time(some.at(-1).p50_ms ?? -1), time(most(some, "p99_ms")),
        count(some.at(-1).devices), count(most(some, "lanes")), some.map(brokerWord).find((word) => word !== "connected") ?? "connected",
      ];
      return h("tr", {}, h("th", { scope: "row" }, clock(minute * 60_000).slice(0, -3)), cells.map((cell) => h("td", {}, cell)));
    });
    put(this.#table.lastElementChild, h("table", {}, h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows)));
  }

  async #lookAtCommands() {
    if (!this.#isShown || document.hidden || this.#link.phase !== "live") return;
    try {
      this.#drawCommands((await ask(`/commands?limit=${COMMANDS}`)).commands);
    } catch (error) {
      // Whether the bridge answers at all is looked after elsewhere.
      if (error.status > 0) put(this.#commands, h("li", { class: "quiet" }, error.message));
    }
  }

  #drawCommands(commands) {
    const items = commands.map((command) => {
      const key = `${command.id} ${command.address} ${command.taken}`;
      const text = JSON.stringify(command);
      const known = this.#items.get(key);
      if (known?.text === text) return [key, known];
      return [key, { text, element: commandRow(command, known?.element.firstElementChild.open) }];
    });
    this.#items = new Map(items);
    const elements = items.map(([, item]) => item.element);
    arrange(this.#commands, elements.length > 0 ? elements : [h("li", { class: "quiet" }, "None yet.")]);
  }
}

function brokerWord({ consumer, publisher }) {
  if (consumer && publisher) return "connected";
  return consumer || publisher ? "half away" : "away";
}

function commandRow(command, isOpen) {
  const took = command.settled && duration(Date.parse(command.settled) - Date.parse(command.published ?? command.taken));
  return h("li", {}, h("details", { open: isOpen },
    h("summary", { class: "row" },
      h("time", { class: "quiet" }, clock(command.taken)),
      badge(words.outcome(command.outcome)),
      h("span", { class: "mono" }, command.address),
      h("code", { class: "line" }, command.line),
      took && h("span", { class: "quiet took" }, took)),
    timeline(command),
    h("p", { class: "small-text" }, h("a", { href: `#/devices/${encodeURIComponent(command.address)}` }, "Device"), " ", h("span", { class: "mono quiet" }, command.id))));
}
