// What the bridge counts: asked for every few seconds, with the history of the last hour.

import { ask } from "./api.js";

/** Between two looks at how the bridge is. */
const NOW_MS = 2_000;
/** Shorter than that of other requests: by this it is noticed that a bridge hangs. */
const TIMEOUT_MS = 4_000;
/** What is shown, and what is kept. */
export const HOUR_MS = 3_600_000;

export class Stats extends EventTarget {
  /** The last answer, and when it came. */
  now = undefined;
  at = 0;
  /** Samples of the last hour, oldest first. */
  samples = [];
  everySeconds = 5;
  #link;
  #historyAt = 0;

  constructor(link) {
    super();
    this.#link = link;
  }

  /** Asks for as long as the page lives; while the link is lost or rests, nobody is asked. */
  async run() {
    for (;;) {
      if (this.#link.phase === "live") await this.#look();
      await new Promise((resolve) => setTimeout(resolve, NOW_MS));
    }
  }

  /** Commands per second over the last whole sample, all outcomes together. */
  get rate() {
    const last = this.samples.at(-1);
    return last ? total(last.outcomes) / this.everySeconds : undefined;
  }

  async #look() {
    try {
      const now = await ask("/stats", { timeout: TIMEOUT_MS });
      if (this.now && this.now.run !== now.run) this.#historyAt = 0;
      this.now = now;
      this.at = Date.now();
      this.#link.heard();
      if (this.at - this.#historyAt >= this.everySeconds * 1000) await this.#history();
      this.dispatchEvent(new Event("change"));
    } catch (error) {
      if (error.status === 0 || error.status === 401) this.#link.broken(error.message);
    }
  }

  /** All of it at first, then only what is new. */
  async #history() {
    const last = this.#historyAt > 0 ? this.samples.at(-1)?.at_ms : undefined;
    const query = last === undefined ? "?history" : `?history&after=${last}`;
    const { every_s: everySeconds, samples } = await ask(`/stats${query}`, { timeout: TIMEOUT_MS });
    this.everySeconds = everySeconds;
    this.#historyAt = this.at;
    // A bridge that was started again knows nothing of before; we may.
    const first = samples[0]?.at_ms ?? Infinity;
    const since = Date.now() - HOUR_MS;
    this.samples = [...this.samples.filter((it) => it.at_ms < first), ...samples].filter((it) => it.at_ms > since);
    this.dispatchEvent(new Event("history"));
  }
}

export function total(outcomes = {}) {
  return Object.values(outcomes).reduce((sum, count) => sum + count, 0);
}
