// The link to the bridge: signs in, takes a snapshot, follows what happens, and begins anew whenever that breaks.

import { events } from "./api.js";
import { enter } from "./session.js";
import * as snapshot from "./snapshot.js";

/** Between two attempts: this long at first, twice as long each time, with some chance in it. */
const WAIT_MS = 500;
const WAIT_MAX_MS = 10_000;
/** A page that nobody sees lets go of its connection: a browser has six for one bridge, all tabs together. */
const HIDDEN_MS = 60_000;

/** `phase`: `starting`, `live`, `lost` or `resting`. Tells every `change`. */
export class Link extends EventTarget {
  phase = "starting";
  /** When the bridge was last heard of. */
  heardAt = undefined;
  /** When the next attempt is made, while it is lost. */
  nextAt = undefined;
  reason = "";
  #fleet;
  #attempt = new AbortController();
  #wake = () => {};

  constructor(fleet) {
    super();
    this.#fleet = fleet;
    document.addEventListener("visibilitychange", () => this.#seen());
  }

  async run() {
    for (let failures = 0; ; failures += 1) {
      this.#attempt = new AbortController();
      try {
        await enter();
        await this.#follow(() => { failures = 0; });
        // It told us that we were too slow: begin at once with what is true now.
        continue;
      } catch (error) {
        if (error.status === 401) continue;
        if (this.phase === "resting") await this.#woken();
        else await this.#lost(error, failures);
      }
    }
  }

  /** Something was heard of the bridge. */
  heard() {
    this.heardAt = Date.now();
  }

  /** Somebody who asked got no answer: what we follow may hang in the same way. */
  broken(reason) {
    if (this.phase === "live") this.#attempt.abort(new Error(reason));
  }

  /** Does not wait any longer. */
  tryNow() {
    this.#wake();
  }

  async #follow(isLive) {
    const { signal } = this.#attempt;
    const aborted = new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    aborted.catch(() => {});
    await Promise.race([aborted, this.#listen(isLive, signal)]);
  }

  async #listen(isLive, signal) {
    // Listens first: what happens while the snapshot is on its way is told after it.
    const happening = await events(["presence"], "", { signal });
    const early = [];
    let isLoaded = false;
    const load = async () => {
      this.#fleet.begin();
      await snapshot.devices((devices) => this.#fleet.load(devices), { signal });
      this.#fleet.loaded();
      isLoaded = true;
      early.forEach((event) => this.#fleet.presence(event));
      isLive();
      this.#become("live");
    };
    const loading = load();
    loading.catch((error) => this.#attempt.abort(error));
    for await (const some of happening) {
      this.heard();
      for (const { kind, data } of some) {
        if (kind === "missed") return;
        if (kind !== "presence") continue;
        if (isLoaded) this.#fleet.presence(data);
        else early.push(data);
      }
    }
    throw new Error("the bridge ended the connection");
  }

  async #lost(error, failures) {
    this.#attempt.abort();
    this.reason = error.message;
    const wait = Math.min(WAIT_MS * 2 ** failures, WAIT_MAX_MS) * (0.75 + Math.random() / 2);
    this.nextAt = Date.now() + wait;
    this.#become("lost");
    await this.#woken(wait);
    this.nextAt = undefined;
  }

  #woken(wait) {
    return new Promise((resolve) => {
      this.#wake = resolve;
      if (wait !== undefined) setTimeout(resolve, wait);
    });
  }

  #seen() {
    clearTimeout(this.hidden);
    if (!document.hidden) {
      if (this.phase === "resting") this.#become("starting");
      this.#wake();
      return;
    }
    this.hidden = setTimeout(() => {
      if (this.phase !== "live") return;
      this.#become("resting");
      this.#attempt.abort(new Error("nobody looks"));
    }, HIDDEN_MS);
  }

  #become(phase) {
    this.phase = phase;
    this.dispatchEvent(new Event("change"));
  }
}
