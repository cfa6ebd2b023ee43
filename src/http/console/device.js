// One device: how it is, what it last said, its past connections, its last commands.

import { ask, events } from "./api.js";
import { badge, h, put } from "./dom.js";
import { stateOf } from "./fleet.js";
import { clock, count, duration } from "./format.js";
import { mayAct } from "./session.js";
import { commandItem } from "./timeline.js";
import * as words from "./words.js";

/** The least time between two looks at a device to which much happens. */
const AGAIN_MS = 500;
/** A look without any reason: what it has in flight and when it was last seen is told by no event. */
const LOOK_MS = 5_000;
/** Before what happens to it is followed again, after that broke. */
const FOLLOW_AGAIN_MS = 2_000;

export class DeviceView {
  #fleet;
  #link;
  #address;
  #history;
  #problem;
  #drawn;
  #last;
  #gone = new AbortController();
  #soon;
  #head;
  #facts;
  #said;
  #commands;
  #past;
  #body;
  #none;

  constructor({ fleet, link }) {
    this.#fleet = fleet;
    this.#link = link;
    this.#head = h("div", {});
    this.#facts = h("dl", { class: "facts" });
    this.#said = h("div", { class: "last" });
    this.#commands = h("ol", { class: "commands" });
    this.#past = h("div", { class: "scroll" });
    this.#body = h("div", {},
      this.#facts,
      h("h2", {}, "Last value"), this.#said,
      h("h2", {}, "Last commands"), this.#commands,
      h("h2", {}, "Past connections"), this.#past);
    this.#none = h("p", { class: "quiet empty" }, "Choose a device to see its state, its connections and its last commands.");
    this.element = h("section", { class: "panel device", "aria-label": "Device", tabindex: -1 }, this.#head, this.#body, this.#none);
    fleet.addEventListener("change", () => this.#drawHead());
    setInterval(() => this.#again(), LOOK_MS);
  }

  show(address) {
    this.#body.hidden = this.#head.hidden = !address;
    this.#none.hidden = Boolean(address);
    if (address === this.#address) return;
    this.hide();
    this.#address = address;
    if (!address) return;
    this.#history = this.#problem = undefined;
    this.#last = this.#fleet.devices.get(address)?.last;
    this.#draw();
    this.#gone = new AbortController();
    this.#look();
    this.#follow(address, this.#gone.signal);
  }

  hide() {
    this.#gone.abort();
    clearTimeout(this.#soon);
    this.#soon = undefined;
    this.#address = undefined;
  }

  /** Looks again soon, once for all that asks meanwhile. */
  #again() {
    if (!this.#address || this.#soon || document.hidden || this.#link.phase !== "live") return;
    this.#soon = setTimeout(() => {
      this.#soon = undefined;
      this.#look();
    }, AGAIN_MS);
  }

  async #look() {
    const address = this.#address;
    try {
      const history = await ask(`/devices/${encodeURIComponent(address)}`, { signal: this.#gone.signal });
      if (address !== this.#address) return;
      this.#history = history;
      this.#problem = undefined;
      if (history.last) this.#last = history.last;
    } catch (error) {
      if (address !== this.#address || error.name === "AbortError" || error.status === 0) return;
      this.#problem = error.status === 404 ? "The bridge remembers nothing of this device." : error.message;
    }
    this.#draw();
  }

  /** Its lines and commands as they come. */
  async #follow(address, signal) {
    while (!signal.aborted) {
      try {
        for await (const some of await events(["line", "outcome", "command"], address, { signal })) {
          // The prefix of an address may be that of others.
          const its = some.filter(({ data }) => data.address === address);
          const line = its.findLast(({ kind }) => kind === "line")?.data;
          if (line) this.#last = line;
          if (line) this.#drawLast();
          if (its.some(({ kind }) => kind !== "line")) this.#again();
        }
      } catch {
        // The bar says that the bridge is lost; here it is enough to come back.
      }
      if (!signal.aborted) await new Promise((resolve) => setTimeout(resolve, FOLLOW_AGAIN_MS));
    }
  }

  #draw() {
    this.#drawHead();
    this.#drawFacts();
    this.#drawLast();
    const { commands = [], connections = [] } = this.#history ?? {};
    // What has not changed is not touched: somebody may be about to copy it.
    const drawn = JSON.stringify([this.#address, commands, connections, this.#problem, Boolean(this.#history)]);
    if (this.#drawn === drawn) return;
    this.#drawn = drawn;
    put(this.#commands, commands.length === 0
      ? h("li", { class: "quiet" }, this.#history ? "None is remembered." : (this.#problem ?? "Loading …"))
      : commands.map((command) => commandItem(command)));
    put(this.#past, connections.length === 0 ? h("p", { class: "quiet" }, "None is remembered.") : pastTable(connections));
  }

  #drawHead() {
    if (!this.#address) return;
    const known = this.#fleet.devices.get(this.#address) ?? { online: false };
    const lane = this.#history?.connected?.lane ?? known.lane;
    const key = [this.#address, stateOf({ ...known, lane }), known.since, mayAct()].join();
    if (this.#head.dataset.key === key) return;
    this.#head.dataset.key = key;
    const to = encodeURIComponent(this.#address);
    put(this.#head,
      h("a", { class: "back", href: "#/devices" }, "All devices"),
      h("div", { class: "row" },
        h("h1", { class: "mono" }, this.#address),
        badge(words.device(stateOf({ ...known, lane }))),
        known.since && h("span", { class: "quiet" }, `since ${clock(known.since)}`),
        mayAct() && h("a", { class: "button main", href: `#/send/${to}` }, "Send a command")));
    // It came or went: how its connection ended is news.
    this.#again();
  }

  #drawFacts() {
    const it = this.#history?.connected;
    this.#facts.hidden = !it;
    if (!it) return;
    const facts = [
      ["Peer", it.peer],
      ["Connected for", duration(Date.now() - Date.parse(it.since))],
      ["Last seen", clock(it.last_seen)],
      ["Waiting in its lane", count(it.lane)],
      ["In flight", count(it.in_flight)],
      ["Commands", count(it.commands)],
      ["Lines", count(it.lines)],
    ];
    put(this.#facts, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  }

  #drawLast() {
    const last = this.#last;
    if (!last) {
      put(this.#said, h("p", { class: "quiet" }, "It has said nothing that is remembered."));
      return;
    }
    put(this.#said,
      h("code", { class: "line" }, last.line ?? `base64: ${last.line_base64}`),
      h("time", { class: "quiet", datetime: last.at }, clock(last.at)));
  }
}

function pastTable(connections) {
  const cell = (...children) => h("td", {}, children);
  return h("table", {},
    h("thead", {}, h("tr", {}, ["From", "Until", "For", "Peer", "Why it ended"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, connections.map(({ since, until, peer, reason }) => h("tr", {},
      cell(clock(since)), cell(clock(until)), cell(duration(Date.parse(until) - Date.parse(since))),
      h("td", { class: "mono" }, peer), cell(h("strong", {}, reason), words.ended(reason) === reason ? "" : `: ${words.ended(reason)}`)))));
}
