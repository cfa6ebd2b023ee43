// One command's way: its steps, each with its time, and how long lay between.

import { badge, h } from "./dom.js";
import { clock, duration } from "./format.js";
import * as words from "./words.js";

const STEPS = {
  published: "said by whoever published it",
  taken: "the bridge took it from the broker",
  written: "the kernel took its last byte",
  acknowledged: "the bridge learned that the device's TCP stack has it",
  answered: "the device's answer came",
  passed_on: "another bridge had it, which knows its outcome",
  settled: "its outcome was known",
};

/** Times are told in whole milliseconds. */
const between = (ms) => (ms === 0 ? "< 1 ms" : `+${duration(ms)}`);

/** `command` as `/commands/ID` and `/devices/ADDRESS` tell it. */
export function timeline(command) {
  const taken = Object.keys(STEPS)
    .filter((step) => command[step])
    .map((step, order) => ({ step, order, at: Date.parse(command[step]) }))
    .sort((a, b) => a.at - b.at || a.order - b.order);
  const steps = taken.map(({ step, at }, index) => h("li", { title: `${STEPS[step]}: ${command[step]}` },
    index > 0 && h("span", { class: "gap" }, between(at - taken[index - 1].at)),
    h("span", { class: "step" }, step.replace("_", " ")),
    h("time", { datetime: command[step] }, clock(at, { exact: true }))));
  return h("ol", { class: "steps", "aria-label": "Steps" }, steps);
}

/** A command of one device: what was said, its outcome, its way, and what was asked. */
export function commandItem(command) {
  const asked = [
    `confirm ${command.confirm}`,
    `if offline ${command.if_offline}`,
    command.once && "once",
    command.redelivered && "delivered again by the broker",
    command.from_parking && "was parked",
    command.trace && `trace ${command.trace}`,
  ].filter(Boolean).join(", ");
  return h("li", { class: "command" },
    h("div", { class: "row" },
      badge(words.outcome(command.outcome)),
      h("code", { class: "line" }, command.line)),
    timeline(command),
    h("p", { class: "quiet small-text" }, h("span", { class: "mono" }, command.id), ` – ${asked}`));
}
