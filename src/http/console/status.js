// The bar that says in words how bridge and broker are, and of when it is what the page shows.

import { badge, byId, h, put, say } from "./dom.js";
import { clock, duration } from "./format.js";

/** The badge and the sentence for how things are; the first that applies. */
function situation(link, stats) {
  const { now } = stats;
  if (link.phase === "lost") {
    const since = link.heardAt ? `has not answered since ${clock(link.heardAt)}` : "does not answer";
    const shown = link.heardAt ? ` What you see is of ${clock(link.heardAt)}.` : "";
    return {
      tone: "bad",
      bridge: "lost",
      sentence: `The bridge ${since}: ${link.reason}.${shown}`,
    };
  }
  if (link.phase === "resting") return { tone: "quiet", bridge: "not followed", sentence: "Nobody looked at this page, so it has stopped following the bridge." };
  if (link.phase === "starting" || !now) return { tone: "quiet", bridge: "connecting", sentence: "" };
  if (now.draining) {
    return { tone: "wait", bridge: "draining", sentence: "The bridge drains: it takes no more commands and no more connections, finishes what it has in hand, and ends." };
  }
  const { consumer, publisher, blocked } = now.broker;
  if (!consumer && !publisher) {
    return { tone: "bad", bridge: "connected", sentence: "The broker is away. Commands wait in its queue and cannot be sent from here; devices stay connected. The bridge tries again by itself." };
  }
  if (!consumer) return { tone: "bad", bridge: "connected", sentence: "The broker delivers no commands: the connection that takes them is away. The bridge tries again by itself." };
  if (!publisher) return { tone: "bad", bridge: "connected", sentence: "Receipts and events wait: the connection that publishes is away. Nothing can be sent from here. The bridge tries again by itself." };
  if (blocked) return { tone: "wait", bridge: "connected", sentence: "The broker is short of memory or disk and blocks whoever publishes. Receipts and events wait, and nothing can be sent from here." };
  return { tone: "good", bridge: "connected", sentence: "" };
}

function brokerWord(link, now) {
  if (link.phase !== "live" || !now) return { tone: "quiet", shape: "unknown", word: "not known" };
  const { consumer, publisher, blocked } = now.broker;
  if (!consumer && !publisher) return { tone: "bad", shape: "bad", word: "away" };
  if (!consumer || !publisher) return { tone: "bad", shape: "warning", word: "half away" };
  if (blocked) return { tone: "wait", shape: "warning", word: "blocking" };
  return { tone: "good", shape: "good", word: "connected" };
}

const SHAPES = { good: "good", wait: "warning", bad: "bad", quiet: "pending" };

/** Draws the bar whenever something changes, and counts the seconds until the next attempt. */
export function start(link, stats) {
  const bridge = h("span", { class: "part" });
  const broker = h("span", { class: "part" });
  const about = h("span", { class: "quiet about" });
  const sentence = h("p", { role: "status" });
  const next = h("span", { class: "quiet" });
  const again = h("button", { type: "button", class: "small", onclick: () => link.tryNow() }, "Try now");
  const retry = h("div", { class: "row", hidden: true }, next, again);
  put(byId("state"),
    h("div", { class: "row parts" }, bridge, broker, about),
    h("div", { class: "row trouble" }, sentence, retry));

  let drawn = "";
  const draw = () => {
    document.body.dataset.link = link.phase;
    const it = situation(link, stats);
    const brokerIs = brokerWord(link, stats.now);
    // Only what differs is drawn, so that nothing is read aloud twice.
    const key = JSON.stringify([it, brokerIs]);
    if (key !== drawn) {
      drawn = key;
      byId("state").dataset.tone = it.sentence ? it.tone : "good";
      put(bridge, "Bridge ", badge({ shape: SHAPES[it.bridge === "connected" ? "good" : it.tone], tone: it.bridge === "connected" ? "good" : it.tone, word: it.bridge }));
      put(broker, "Broker ", badge(brokerIs));
      say(sentence, it.sentence);
    }
    retry.hidden = link.phase !== "lost";
    if (link.nextAt) say(next, `Next try in ${Math.max(0, Math.ceil((link.nextAt - Date.now()) / 1000))} s.`);
    else if (!retry.hidden) say(next, "Trying.");
    if (stats.now) {
      say(byId("bridge-name"), stats.now.bridge);
      say(about, `version ${stats.now.version}, up ${duration(stats.now.uptime_s * 1000)}`);
    }
  };
  link.addEventListener("change", draw);
  stats.addEventListener("change", draw);
  setInterval(draw, 1000);
  draw();
}
