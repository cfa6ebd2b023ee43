// What was sent from this page, and what became of it: by the answer to the request, and as it happens.

import { ask, events } from "./api.js";
import { announce, badge, h, put } from "./dom.js";
import { clock, count, plural } from "./format.js";
import { timeline } from "./timeline.js";
import * as words from "./words.js";

/** As long as the bridge lets a request wait; what comes later is told by events. */
const WAIT_S = 60;
/** How long events are followed for a command without a final outcome: one may be parked for days. */
const FOLLOW_MS = 15 * 60_000;
const FOLLOW_AGAIN_MS = 1_000;
/** Not sent later than this for want of events. */
const READY_MS = 2_000;
/** Recipients listed; those that were not reached come first. */
const LISTED_MAX = 200;

/** Follows outcomes for as long as somebody waits for some. */
export class Follower {
  #waiting = new Map();
  #running;
  #stop;

  /** Resolves when what happens from now on will be told. */
  async add(id, told) {
    this.#waiting.set(id, told);
    setTimeout(() => this.remove(id), FOLLOW_MS);
    this.#running ??= this.#run();
    await Promise.race([this.ready, new Promise((resolve) => setTimeout(resolve, READY_MS))]);
  }

  remove(id) {
    this.#waiting.delete(id);
    if (this.#waiting.size === 0) this.#stop?.abort();
  }

  async #run() {
    while (this.#waiting.size > 0) {
      this.#stop = new AbortController();
      const { signal } = this.#stop;
      const opening = events(["outcome"], "", { signal });
      this.ready = opening.catch(() => {});
      try {
        for await (const some of await opening) {
          const byId = Map.groupBy(some.filter(({ kind }) => kind === "outcome"), ({ data }) => data.id);
          for (const [id, told] of this.#waiting) {
            if (byId.has(id)) told(byId.get(id).map(({ data }) => data));
          }
        }
      } catch {
        // The answer to the request tells it as well, and the bar that the bridge is lost.
      }
      if (this.#waiting.size > 0) await new Promise((resolve) => setTimeout(resolve, FOLLOW_AGAIN_MS));
    }
    this.#running = undefined;
  }
}

/** One command that was sent. `accepted` resolves when the bridge has it or does not take it. */
export class Sending {
  #id = newId();
  #command;
  #toWhom;
  #follower;
  #receipts = new Map();
  #isDrawing = false;
  #isTold = false;
  #isOne;
  /** What the bridge told last of a command for several. */
  #summary;
  #problem;
  #outcome;
  #detail;

  constructor({ command, toWhom, text }, follower, { failed }) {
    this.#command = { ...command, id: this.#id };
    this.#toWhom = toWhom;
    this.#follower = follower;
    this.#isOne = "address" in command;
    this.#outcome = h("span", { class: "outcomes" }, badge(words.outcome()));
    this.#detail = h("div", {});
    this.element = h("li", { class: "command" },
      h("div", { class: "row" }, h("time", { class: "quiet" }, clock(Date.now())), this.#outcome, h("span", { class: "mono" }, toWhom), h("code", { class: "line" }, text)),
      this.#detail);
    this.accepted = new Promise((resolve) => this.#send(resolve, failed));
  }

  async #send(accepted, failed) {
    await this.#follower.add(this.#id, (receipts) => {
      accepted();
      this.#take(receipts);
    });
    // The bridge answers when all is known. That it has taken the command shows earlier, or in this:
    setTimeout(accepted, READY_MS);
    try {
      const answer = await ask(`/commands?wait=${WAIT_S}s`, { method: "POST", body: this.#command, timeout: (WAIT_S + 5) * 1000 });
      this.#summary = answer?.summary;
      this.#take(answer?.receipts ?? (answer?.outcome ? [answer] : []));
      if (answer?.detail) this.#note(answer.detail);
      if (this.#summary || (this.#isOne && words.isFinal(answer?.outcome))) this.#over();
    } catch (error) {
      // Without an answer it may be on its way all the same, and what becomes of it may still be told.
      if (error.status === 0 || error.status === 504) {
        this.#note(error.message);
      } else {
        this.#follower.remove(this.#id);
        failed(error);
      }
    }
    accepted();
  }

  /** Why no more may be told of it. */
  #note(text) {
    this.#problem = h("p", { class: "problem" }, `${text}. What becomes of it is shown if it is told.`);
    this.#detail.append(this.#problem);
  }

  /** Outcomes came, of one or several; a later one counts. */
  #take(receipts) {
    for (const receipt of receipts) {
      const known = this.#receipts.get(receipt.address);
      if (!known || known.at <= receipt.at) this.#receipts.set(receipt.address, receipt);
    }
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    requestAnimationFrame(() => {
      this.#isDrawing = false;
      this.#draw();
    });
  }

  async #over() {
    this.#follower.remove(this.#id);
    this.#draw();
    if (!this.#isOne) return;
    try {
      const { commands } = await ask(`/commands/${encodeURIComponent(this.#id)}`);
      if (commands[0]) this.#detail.append(timeline(commands[0]));
    } catch {
      // It is forgotten already: the outcome was told.
    }
  }

  #draw() {
    const receipts = [...this.#receipts.values()];
    if (receipts.length === 0) return;
    // A bridge counts what it tells itself; of what others tell there are the receipts.
    const counted = this.#summary?.passed_on ? undefined : this.#summary?.outcomes;
    const counts = counted ?? Object.fromEntries([...Map.groupBy(receipts, ({ outcome }) => outcome)].map(([word, some]) => [word, some.length]));
    const [only] = receipts;
    const about = h("span", { class: "mono quiet small-text" }, this.#id);
    if (this.#isOne) {
      put(this.#outcome, badge(words.outcome(only.outcome)));
      const steps = this.#detail.querySelector(".steps");
      const answer = only.answer ?? only.answer_base64;
      put(this.#detail, only.reason && h("p", {}, only.reason), answer !== undefined && h("p", {}, "Answer: ", h("code", { class: "line" }, answer)), about, steps, this.#problem);
    } else {
      put(this.#outcome, Object.entries(counts).map(([word, number]) => badge({ ...words.outcome(word), word: `${word} ${count(number)}` })));
      const missing = this.#summary?.missing_bridges;
      const unheard = missing && h("p", { class: "problem" }, `${missing.join(", ")} did not say which of its devices it is for. Some may not have it.`);
      put(this.#detail, this.#table(receipts), unheard, about, this.#problem);
    }
    this.#tell(counts, only);
  }

  #tell(counts, only) {
    const isOver = this.#isOne ? words.isFinal(only.outcome) : Boolean(this.#summary);
    if (!isOver || this.#isTold) return;
    this.#isTold = true;
    const told = this.#isOne ? `${only.outcome}${only.reason ? `, ${only.reason}` : ""}` : Object.entries(counts).map(([word, number]) => `${number} ${word}`).join(", ");
    announce(`Command to ${this.#toWhom}: ${told}.`);
  }

  #table(receipts) {
    const isOpen = this.#detail.querySelector("details")?.open;
    const members = this.#summary?.members;
    const told = members === undefined ? `${plural(receipts.length, "outcome")} so far` : `${plural(members, "device")}`;
    const rows = receipts
      .sort((a, b) => words.isDelivered(a.outcome) - words.isDelivered(b.outcome))
      .slice(0, LISTED_MAX)
      .map(({ address, outcome, reason, answer }) => h("tr", {},
        h("td", { class: "mono" }, h("a", { href: `#/devices/${encodeURIComponent(address)}` }, address)),
        h("td", {}, badge(words.outcome(outcome))), h("td", {}, reason ?? answer ?? "")));
    const more = receipts.length > LISTED_MAX && h("p", { class: "quiet" }, `${count(LISTED_MAX)} of ${count(receipts.length)}; those that were not reached come first.`);
    return h("details", { open: isOpen }, h("summary", {}, told), h("div", { class: "scroll" }, h("table", {}, h("tbody", {}, rows)), more));
  }
}

/** Not `crypto.randomUUID`: a page that came without TLS has none. */
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return `console-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
