// The devices: a list to search and filter, and beside it the one that was chosen.

import { ask } from "./api.js";
import { DeviceView } from "./device.js";
import { badge, h, say } from "./dom.js";
import { stateOf } from "./fleet.js";
import { clock, count, plural } from "./format.js";
import { List } from "./list.js";
import * as words from "./words.js";

/** Between two looks at which devices do not read; no event tells that. */
const WAITING_MS = 3_000;
/** As many of those as are asked for: the largest page there is. */
const WAITING_MAX = 10_000;

const STATES = [
  ["all", "All"],
  ["online", "Online"],
  ["silent", "Silent"],
  ["waiting", "Waiting"],
  ["away", "Away"],
];

export class DevicesView {
  title = "Devices";
  #fleet;
  #link;
  #search = new AbortController();
  #counts = new Map();
  #state = "all";
  #isShown = false;
  #list;
  #text;
  #found;

  constructor(context) {
    this.#fleet = context.fleet;
    this.#link = context.link;
    this.device = new DeviceView(context);
    this.#list = new List({
      label: "Devices",
      row,
      name: (device) => device.address,
      chosen: (device) => { location.hash = `#/devices/${encodeURIComponent(device.address)}`; },
    });
    this.#text = h("input", {
      type: "search", id: "search", placeholder: "Address or peer", autocomplete: "off", spellcheck: "false",
      oninput: () => this.#find(),
      onkeydown: (event) => {
        if (event.key !== "ArrowDown") return;
        event.preventDefault();
        this.#list.focus();
      },
    });
    this.#found = h("p", { class: "quiet found", role: "status" });
    this.element = h("div", { class: "devices" },
      h("section", { class: "panel choose", "aria-label": "Choose a device" },
        h("h1", {}, "Devices"),
        h("label", { class: "only-heard", for: "search" }, "Search"),
        this.#text,
        h("fieldset", { class: "chips" }, h("legend", { class: "only-heard" }, "State"), STATES.map((state) => this.#chip(state))),
        this.#found,
        this.#list.element),
      this.device.element);
    this.#fleet.addEventListener("change", () => this.#find());
    setInterval(() => this.#waiting(), WAITING_MS);
  }

  show([address]) {
    this.#isShown = true;
    this.element.classList.toggle("has-device", Boolean(address));
    this.#list.select(address);
    this.device.show(address);
    this.#find();
    this.#waiting();
  }

  hide() {
    this.#isShown = false;
    this.device.hide();
  }

  #chip([state, label]) {
    const number = h("span", { class: "count" });
    this.#counts.set(state, number);
    const input = h("input", {
      type: "radio", name: "state", value: state, checked: state === "all",
      onchange: () => {
        this.#state = state;
        this.#find();
      },
    });
    return h("label", { class: "chip" }, input, label, number);
  }

  #find() {
    if (!this.#isShown) return;
    const fleet = this.#fleet;
    if (fleet.loading && fleet.devices.size === 0) {
      say(this.#found, `Loading: ${plural(fleet.loading.size, "device")} so far`);
      return;
    }
    this.#search.abort();
    this.#search = new AbortController();
    fleet.search({ text: this.#text.value, state: this.#state }, (hits) => {
      this.#list.show(hits);
      say(this.#found, hits.length === 0 ? "No device fits." : `${plural(hits.length, "device")} shown`);
    }, this.#search.signal);
    const numbers = { all: fleet.devices.size, online: fleet.online, silent: fleet.silent, away: fleet.away };
    for (const [state, number] of Object.entries(numbers)) say(this.#counts.get(state), count(number));
  }

  async #waiting() {
    if (!this.#isShown || this.#link.phase !== "live") return;
    try {
      const page = await ask(`/devices?state=waiting&limit=${WAITING_MAX}`);
      const lanes = new Map(page.devices.filter((it) => it.lane > 0).map((it) => [it.address, it.lane]));
      say(this.#counts.get("waiting"), count(lanes.size));
      this.#fleet.waiting(lanes);
    } catch (error) {
      // Whether the bridge answers at all is looked after elsewhere.
      if (error.status === 0) return;
      say(this.#found, error.message);
    }
  }
}

function row(device) {
  const state = stateOf(device);
  const told = state === "waiting" ? `${device.lane} waiting` : state;
  return [
    h("span", { class: "mono address" }, device.address),
    badge({ ...words.device(state), word: told }),
    h("span", { class: "quiet since" }, device.since && `since ${clock(device.since, { isBrief: true })}`),
  ];
}
