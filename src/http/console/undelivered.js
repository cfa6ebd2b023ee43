// The commands that were not delivered: why, and what to do about each.

import { ask } from "./api.js";
import { announce, arrange, badge, byId, confirmed, h, say } from "./dom.js";
import { clock, count, plural } from "./format.js";
import { mayAct } from "./session.js";
import * as words from "./words.js";

const LIMIT = 200;

export class UndeliveredView {
  title = "Undelivered";
  #stats;
  #isShown = false;
  #seen;
  #run;
  #isLooking = false;
  #isOld = false;
  #told;
  #list;
  /** By the keys of messages. */
  #items = new Map();

  constructor({ stats }) {
    this.#stats = stats;
    this.#told = h("p", { class: "quiet" });
    this.#list = h("ol", { class: "undelivered" });
    this.element = h("section", { class: "panel" },
      h("div", { class: "row" },
        h("h1", {}, "Undelivered"),
        h("button", { type: "button", onclick: () => this.#look() }, "Look again")),
      this.#told, this.#list);
    stats.addEventListener("change", () => this.#count());
  }

  show() {
    this.#isShown = true;
    this.#seen = this.#stats.now?.undelivered;
    byId("undelivered-count").hidden = true;
    this.#look();
  }

  hide() {
    this.#isShown = false;
  }

  /** The bridge counts those there were since it started. More of them are a reason to look, or to say so. */
  #count() {
    const { undelivered, run } = this.#stats.now;
    if (this.#run !== run) this.#seen = undelivered;
    this.#run = run;
    const more = undelivered - this.#seen;
    if (this.#isShown && more > 0) {
      this.#seen = undelivered;
      this.#look();
    }
    const badge = byId("undelivered-count");
    badge.hidden = this.#isShown || more <= 0;
    badge.title = `${plural(more, "more", "more")} since you last looked`;
    say(badge, `+${count(more)}`);
  }

  async #look() {
    // What began to be listed before may be old already.
    this.#isOld = this.#isLooking;
    if (this.#isLooking) return;
    this.#isLooking = true;
    try {
      const { total, messages } = await ask(`/undelivered?limit=${LIMIT}`);
      say(this.#told, sentence(total, messages.length));
      // A message never changes: what is there stays, and with it the focus and what is open.
      this.#items = new Map(messages.map((message) => [message.key, this.#items.get(message.key) ?? this.#item(message)]));
      arrange(this.#list, [...this.#items.values()]);
    } catch (error) {
      say(this.#told, `They cannot be listed: ${error.message}.`);
    } finally {
      this.#isLooking = false;
    }
    if (this.#isOld) await this.#look();
  }

  #item(message) {
    const { address, cmd, outcome, reason, at, id } = message;
    const text = typeof cmd === "string" ? cmd : cmd === undefined ? "" : JSON.stringify(cmd);
    const item = h("li", { tabindex: -1 },
      h("div", { class: "row" },
        badge(words.outcome(outcome)),
        address && h("a", { class: "mono", href: `#/devices/${encodeURIComponent(address)}` }, address),
        h("code", { class: "line" }, text),
        at && h("time", { class: "quiet", datetime: at }, clock(at))),
      h("p", {}, reason),
      h("details", {}, h("summary", { class: "quiet small-text" }, "The message ", h("span", { class: "mono" }, id)), h("pre", {}, body(message.body))));
    if (mayAct()) {
      item.append(h("div", { class: "row actions" },
        h("button", { type: "button", onclick: () => this.#retry(message, item) }, "Try again"),
        h("button", { type: "button", class: "danger plain", onclick: () => this.#remove(message, item) }, "Delete")));
    }
    return item;
  }

  async #retry(message, item) {
    await this.#act(message, item, "POST", "/retry", `The command to ${message.address ?? "–"} is in the queue again.`);
  }

  async #remove(message, item) {
    const detail = `${message.address ?? ""}  ${typeof message.cmd === "string" ? message.cmd : JSON.stringify(message.cmd ?? "")}`;
    if (!(await confirmed("Delete this command for good?", { detail, action: "Delete" }))) return;
    await this.#act(message, item, "DELETE", "", `The command to ${message.address ?? "–"} is deleted.`);
  }

  async #act({ key }, item, method, what, done) {
    const buttons = [...item.querySelectorAll("button")];
    buttons.forEach((button) => { button.disabled = true; });
    try {
      await ask(`/undelivered/${key}${what}`, { method });
      // The focus goes to what comes next, not to the top of the page.
      (item.nextElementSibling ?? item.previousElementSibling ?? this.element.querySelector("button")).focus();
      item.remove();
      this.#items.delete(key);
      announce(done);
    } catch (error) {
      announce(`It stays: ${error.message}.`);
      buttons.forEach((button) => { button.disabled = false; });
    }
    await this.#look();
  }
}

function sentence(total, shown) {
  if (total === 0) return "None: every command was delivered, or is on its way.";
  const all = `${plural(total, "command")} ${total === 1 ? "was" : "were"} not delivered`;
  return shown < total ? `${all}; the first ${count(shown)} are shown.` : `${all}.`;
}

const body = (it) => (typeof it === "string" ? it : JSON.stringify(it, undefined, 2));
