// Reads a snapshot while it arrives: tens of thousands of devices are megabytes of JSON, and to parse them at one go
// would hold up the page. The text is cut where one element of the list ends; what is whole is parsed.

import { ask, stream } from "./api.js";

/** Devices of a page, if there is no snapshot to be had. */
const PAGE = 2_000;

/** Calls `take` with some devices at a time. */
export async function devices(take, { signal } = {}) {
  try {
    const elements = new Elements("devices");
    for await (const piece of await stream("/devices?snapshot", { signal })) {
      const found = elements.feed(piece);
      if (found.length > 0) take(found);
    }
    if (!elements.isComplete) throw new SyntaxError("the snapshot ended in the middle");
  } catch (error) {
    // It cannot be made while too many changes wait for a broker that is away. The pages can.
    if (error.status !== 503) throw error;
    await pages(take, signal);
  }
}

async function pages(take, signal) {
  for (let after; ; ) {
    const query = new URLSearchParams({ limit: PAGE, ...(after && { after }) });
    const page = await ask(`/devices?${query}`, { signal });
    take(page.devices.map((device) => ({ online: true, silent: false, ...device })));
    after = page.next;
    if (!after) return;
  }
}

const [QUOTE, BACKSLASH, OPEN_BRACE, CLOSE_BRACE, OPEN_BRACKET, CLOSE_BRACKET] = [..."\"\\{}[]"].map((it) => it.charCodeAt(0));

/** Finds the elements of one list of objects in a JSON text that comes in pieces. */
export class Elements {
  isComplete = false;
  #key;
  #rest = "";
  #isInside = false;
  /** Where to go on in `#rest`, and what is open there. */
  #at = 0;
  #depth = 0;
  #inString = false;

  constructor(name) {
    this.#key = `"${name}":[`;
  }

  /** The elements that are whole with this piece. */
  feed(piece) {
    this.#rest += piece;
    if (!this.#isInside) {
      const begin = this.#rest.indexOf(this.#key);
      if (begin < 0) return [];
      this.#rest = this.#rest.slice(begin + this.#key.length);
      this.#isInside = true;
    }
    const end = this.#scan();
    if (end === 0) return [];
    const whole = this.#rest.slice(this.#rest[0] === "," ? 1 : 0, end);
    this.#rest = this.#rest.slice(end);
    this.#at -= end;
    return JSON.parse(`[${whole}]`);
  }

  /** The end of the last whole element. */
  #scan() {
    const text = this.#rest;
    let [at, depth, inString, end] = [this.#at, this.#depth, this.#inString, 0];
    for (; at < text.length && !this.isComplete; at += 1) {
      const char = text.charCodeAt(at);
      if (inString) {
        if (char === BACKSLASH) at += 1;
        else if (char === QUOTE) inString = false;
      } else if (char === QUOTE) inString = true;
      else if (char === OPEN_BRACE || char === OPEN_BRACKET) depth += 1;
      else if (char === CLOSE_BRACE || char === CLOSE_BRACKET) {
        depth -= 1;
        if (depth === 0) end = at + 1;
        if (depth < 0) this.isComplete = true;
      }
    }
    [this.#at, this.#depth, this.#inString] = [at, depth, inString];
    return end;
  }
}
