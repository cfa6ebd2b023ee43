// The page: what it follows, its views, and which of them is shown.

import { DevicesView } from "./devices.js";
import { byId } from "./dom.js";
import { Fleet } from "./fleet.js";
import { Link } from "./link.js";
import { OverviewView } from "./overview.js";
import { SendView } from "./send.js";
import { mayAct } from "./session.js";
import { Stats } from "./stats.js";
import * as status from "./status.js";
import { UndeliveredView } from "./undelivered.js";

const VIEWS = { "": OverviewView, devices: DevicesView, send: SendView, undelivered: UndeliveredView };

const fleet = new Fleet();
const link = new Link(fleet);
const stats = new Stats(link);
/** Those that were shown once; what they hold stays. */
const views = new Map();
let current;

/** `#/devices/10.0.0.7` is the view `devices` with the word `10.0.0.7`. */
function route() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  return { name: name in VIEWS ? name : "", rest: rest.map(decoded) };
}

/** As it was written, if somebody wrote it by hand and wrongly. */
function decoded(word) {
  try {
    return decodeURIComponent(word);
  } catch {
    return word;
  }
}

function show() {
  const { name, rest } = route();
  if (!views.has(name)) views.set(name, new VIEWS[name]({ fleet, link, stats }));
  const view = views.get(name);
  const isOther = view !== current;
  if (isOther) {
    current?.hide();
    byId("view").replaceChildren(view.element);
  }
  current = view;
  view.show(rest);
  document.title = [rest[0], view.title, "rabbitline"].filter(Boolean).join(" – ");
  for (const anchor of byId("views").children) {
    const isIt = anchor.getAttribute("href").replace(/^#\//, "") === name;
    if (isIt) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
}

status.start(link, stats);
// What is shown depends on who looks: the first view waits until that is known.
link.addEventListener("change", function first() {
  if (link.phase !== "live") return;
  link.removeEventListener("change", first);
  byId("views").querySelector("[href='#/send']").hidden = !mayAct();
  views.set("undelivered", new UndeliveredView({ fleet, link, stats }));
  window.addEventListener("hashchange", show);
  show();
});
link.run();
stats.run();
