// Sends a command to one device, to several, to a group or to all, and shows what becomes of it.

import { ask } from "./api.js";
import { confirmed, h, put, say } from "./dom.js";
import { count, milliseconds, plural } from "./format.js";
import { Follower, Sending } from "./sent.js";
import { mayAct } from "./session.js";

const SUGGESTIONS = 12;
/** Sendings kept on the page. */
const SENDINGS_MAX = 30;
/** What a command with `addresses` may have at most. */
const ADDRESSES_MAX = 10_000;

const TARGETS = [["one", "One device"], ["several", "Several"], ["group", "A group"], ["all", "All"]];
const CONFIRMS = [["", "the bridge's default"], ["written", "written: it is in the socket"], ["received", "received: the device's TCP stack has it"], ["answered", "answered: the device sent a line back"]];
const IF_OFFLINE = [["", "the bridge's default"], ["reject", "reject: it is undelivered"], ["park", "park: it waits in the broker"], ["drop", "drop: it is forgotten"]];

export class SendView {
  title = "Send";
  #fleet;
  #stats;
  #target = "one";
  #fields;
  #follower = new Follower();
  #sendings = [];
  #sent;
  #none;

  constructor({ fleet, stats }) {
    this.#fleet = fleet;
    this.#stats = stats;
    this.#fields = this.#makeFields();
    this.#sent = h("ol", { class: "sendings" });
    this.#none = h("p", { class: "quiet empty" }, "What you send from this tab is shown here with its outcomes.");
    this.element = h("div", { class: "send" },
      mayAct() ? this.#form() : h("section", { class: "panel" }, h("h1", {}, "Send"), h("p", {}, "Your token is a reader's: it may look, and cannot send.")),
      h("section", { class: "panel sent", "aria-label": "Sent" }, h("h2", {}, "Sent from here"), this.#none, this.#sent));
  }

  show([address]) {
    if (address) {
      this.#fields.address.value = address;
      this.#choose("one");
      this.#fields.cmd.focus();
    }
    if (mayAct()) this.#loadGroups();
  }

  hide() {}

  #makeFields() {
    const select = (id, options) => h("select", { id }, options.map(([value, label]) => h("option", { value }, label)));
    const suggestions = h("datalist", { id: "suggestions" });
    return {
      suggestions,
      address: h("input", {
        id: "address", list: "suggestions", autocomplete: "off", spellcheck: "false", placeholder: "10.2.0.7",
        oninput: (event) => put(suggestions, this.#fleet.suggestions(event.target.value.trim(), SUGGESTIONS).map((value) => h("option", { value }))),
      }),
      addresses: h("textarea", { id: "addresses", rows: 4, spellcheck: "false", placeholder: "one a line, or with blanks or commas between" }),
      group: h("select", { id: "group" }),
      all: h("p", { class: "quiet", id: "all" }, "Every device that is connected when the bridge takes the command."),
      cmd: h("textarea", {
        id: "cmd", rows: 3, spellcheck: "false", class: "mono", placeholder: "SET OUT1 ON",
        onkeydown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.target.form.requestSubmit(); },
      }),
      isJson: h("input", { type: "checkbox", id: "is-json" }),
      confirm: select("confirm", CONFIRMS),
      ifOffline: select("if-offline", IF_OFFLINE),
      ttl: h("input", { id: "ttl", size: 8, autocomplete: "off", placeholder: "as 30s, 5m, 1h" }),
      once: h("input", { type: "checkbox", id: "once" }),
      problem: h("p", { class: "problem", role: "alert" }),
      button: h("button", { class: "main" }, "Send"),
    };
  }

  #form() {
    const fields = this.#fields;
    const field = (label, input, className) => h("div", { class: className ?? "field" }, h("label", { for: input.id }, label), input);
    const targets = TARGETS.map(([value, label]) => h("label", { class: "chip" },
      h("input", { type: "radio", name: "target", value, checked: value === "one", onchange: () => this.#choose(value) }), label));
    this.targets = {
      one: field("Address", fields.address),
      several: field("Addresses", fields.addresses),
      group: field("Group", fields.group),
      all: fields.all,
    };
    this.form = h("form", { class: "panel", onsubmit: (event) => { event.preventDefault(); this.#submit(); } },
      h("h1", {}, "Send a command"),
      h("fieldset", { class: "chips" }, h("legend", {}, "To"), targets),
      Object.values(this.targets), fields.suggestions,
      field("Command", fields.cmd),
      h("label", { class: "check" }, fields.isJson, "It is JSON, written to the device in its shortest form"),
      h("div", { class: "pair" }, field("Delivered when", fields.confirm), field("If not connected", fields.ifOffline)),
      h("div", { class: "pair" }, field("Not later than", fields.ttl),
        h("label", { class: "check" }, fields.once, "Once: rather uncertain than written twice")),
      fields.problem,
      h("div", { class: "row" }, fields.button, h("span", { class: "quiet keys" }, "or Ctrl+Enter in the command")));
    this.#choose("one");
    return this.form;
  }

  #choose(target) {
    if (!this.targets) return;
    this.#target = target;
    for (const [name, element] of Object.entries(this.targets)) element.hidden = name !== target;
    this.form.querySelector(`input[value="${target}"]`).checked = true;
  }

  async #loadGroups() {
    try {
      const groups = await ask("/groups");
      const chosen = this.#fields.group.value;
      const options = Object.entries(groups).map(([name, members]) => h("option", { value: name }, `${name} (${count(members.length)})`));
      put(this.#fields.group, options.length > 0 ? options : h("option", { value: "" }, "there is none"));
      if (chosen in groups) this.#fields.group.value = chosen;
    } catch (error) {
      if (error.status > 0) say(this.#fields.problem, error.message);
    }
  }

  async #submit() {
    const { problem, button } = this.#fields;
    say(problem, "");
    let asked;
    try {
      asked = this.#read();
    } catch (error) {
      say(problem, error.message);
      return;
    }
    if (asked.question && !(await confirmed(asked.question, { detail: asked.text, action: "Send" }))) return;
    button.disabled = true;
    const sending = new Sending(asked, this.#follower, { failed: (error) => {
      say(problem, `Not sent: ${error.message}.`);
      this.#sendings = this.#sendings.filter((it) => it !== sending);
      this.#drawSendings();
    } });
    this.#sendings = [sending, ...this.#sendings].slice(0, SENDINGS_MAX);
    this.#drawSendings();
    await sending.accepted;
    button.disabled = false;
  }

  #drawSendings() {
    this.#none.hidden = this.#sendings.length > 0;
    put(this.#sent, this.#sendings.map(({ element }) => element));
  }

  /** The command as the bridge takes it, and how it is spoken of; throws what is wrong with it. */
  #read() {
    const fields = this.#fields;
    const command = { ...this.#readTarget() };
    const { question, toWhom } = command;
    delete command.question;
    delete command.toWhom;
    const text = fields.cmd.value;
    if (text === "") throw new Error("The command is empty");
    command.cmd = fields.isJson.checked ? json(text) : text;
    const ttl = milliseconds(fields.ttl.value);
    if (ttl === undefined) throw new Error(`Not later than: expected a time as 30s, 5m or 1h, got ${fields.ttl.value}`);
    if (ttl !== null) command.ttl_ms = ttl;
    if (fields.confirm.value) command.confirm = fields.confirm.value;
    if (fields.ifOffline.value) command.if_offline = fields.ifOffline.value;
    if (fields.once.checked) command.once = true;
    return { command, toWhom, question, text };
  }

  #readTarget() {
    const fields = this.#fields;
    if (this.#target === "one") {
      const address = fields.address.value.trim();
      if (!address) throw new Error("The address is empty");
      return { address, toWhom: address };
    }
    if (this.#target === "several") {
      const addresses = [...new Set(fields.addresses.value.split(/[\s,;]+/).filter(Boolean))];
      if (addresses.length === 0) throw new Error("No address is given");
      if (addresses.length > ADDRESSES_MAX) throw new Error(`Expected at most ${count(ADDRESSES_MAX)} addresses, got ${count(addresses.length)}`);
      return { addresses, toWhom: plural(addresses.length, "device") };
    }
    if (this.#target === "group") {
      const group = fields.group.value;
      if (!group) throw new Error("There is no group");
      return { group, toWhom: `group ${group}`, question: `Send to everybody in the group ${group}?` };
    }
    const connected = this.#stats.now?.devices ?? this.#fleet.online;
    return { broadcast: true, toWhom: "all that are connected", question: `Send to all ${plural(connected, "connected device")}?` };
  }
}

function json(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`The command is no JSON: ${error.message}`);
  }
}
