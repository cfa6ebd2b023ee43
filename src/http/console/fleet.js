// The devices, in memory: what a snapshot told, kept up with what happens, searched without holding up the page.

/** Of one slice of work, after which the page may draw and answer keys. */
const SLICE_MS = 8;
/** Devices looked at between two looks at the clock. */
const STEP = 512;
/** Devices kept that are gone; beyond it the one that went first is forgotten. With ids made up, there is no end to them. */
const AWAY_MAX = 20_000;

/**
 * One device: `{address, epoch, online, silent, since, last_seen, peer, lane, last}`. `since` is when it came or, of
 * one that is away, when it went.
 */
export class Fleet extends EventTarget {
  devices = new Map();
  /** In the order in which they are shown; made anew when devices were added. */
  #sorted = [];
  #isSorted = true;
  #away = new Set();
  #isTold = false;
  online = 0;
  silent = 0;

  get away() {
    return this.#away.size;
  }

  /** A snapshot begins. What it does not name is gone. */
  begin() {
    this.loading = new Map();
  }

  /** Some devices of the snapshot. */
  load(devices) {
    for (const device of devices) this.loading.set(device.address, { lane: 0, ...device });
    this.#changed();
  }

  /** The snapshot is whole. */
  loaded() {
    this.devices = this.loading;
    this.loading = undefined;
    this.#away.clear();
    this.online = this.silent = 0;
    for (const device of this.devices.values()) this.#count(device, 1);
    this.#isSorted = false;
    this.#changed();
  }

  /** A presence event. One of an earlier connection than the known one says nothing new. */
  presence({ address, epoch, online, silent = false, at, peer }) {
    let device = this.devices.get(address);
    if (device && epoch < device.epoch) return;
    if (!device) {
      device = { address, lane: 0 };
      this.devices.set(address, device);
      this.#isSorted = false;
    } else {
      this.#count(device, -1);
    }
    const isSame = device.epoch === epoch && device.online === online;
    Object.assign(device, { epoch, online, silent: online && silent, peer, since: isSame ? device.since : at, last_seen: at });
    if (!online) device.lane = 0;
    this.#count(device, 1);
    this.#forgetSome();
    this.#changed();
  }

  /** Which devices do not read now, and how much waits for each. */
  waiting(lanes) {
    for (const device of this.devices.values()) device.lane = lanes.get(device.address) ?? 0;
    this.#changed();
  }

  /**
   * The devices that fit, in slices. `found` is called with what was found so far when a slice ends, and with
   * `isDone` at last.
   */
  async search({ text, state }, found, signal) {
    const wanted = text.trim().toLowerCase();
    const hits = [];
    let until = performance.now() + SLICE_MS;
    const all = await this.#inOrder();
    for (let index = 0; index < all.length; index += 1) {
      if (index % STEP === 0 && performance.now() > until) {
        await rest();
        if (signal.aborted) return;
        until = performance.now() + SLICE_MS;
      }
      const device = all[index];
      if ((state === "all" || has(device, state)) && fits(device, wanted)) hits.push(device);
    }
    if (!signal.aborted) found(hits);
  }

  /** At most `limit` addresses that begin so, or else contain it. */
  suggestions(text, limit) {
    const [first, then] = [[], []];
    for (const address of this.devices.keys()) {
      if (address.startsWith(text)) first.push(address);
      else if (then.length < limit && address.includes(text)) then.push(address);
      if (first.length === limit) break;
    }
    return [...first, ...then].slice(0, limit);
  }

  async #inOrder() {
    if (!this.#isSorted) {
      this.#isSorted = true;
      this.#sorted = await sorted([...this.devices.values()]);
    }
    return this.#sorted;
  }

  #count(device, by) {
    if (device.online) {
      this.online += by;
      if (device.silent) this.silent += by;
      if (by > 0) this.#away.delete(device.address);
    } else if (by > 0) {
      // Behind those that went before.
      this.#away.delete(device.address);
      this.#away.add(device.address);
    }
  }

  #forgetSome() {
    while (this.#away.size > AWAY_MAX) {
      const [first] = this.#away;
      this.#away.delete(first);
      this.devices.delete(first);
      this.#isSorted = false;
    }
  }

  /** Told once a frame at most, however much happens. */
  #changed() {
    if (this.#isTold) return;
    this.#isTold = true;
    setTimeout(() => {
      this.#isTold = false;
      this.dispatchEvent(new Event("change"));
    }, 100);
  }
}

/** The word for how a device is; the first that applies. */
export function stateOf(device) {
  if (!device.online) return "away";
  if (device.lane > 0) return "waiting";
  return device.silent ? "silent" : "online";
}

function has(device, state) {
  if (state === "away") return !device.online;
  if (!device.online) return false;
  if (state === "silent") return device.silent;
  return state === "online" || device.lane > 0;
}

const fits = (device, wanted) =>
  wanted === "" || device.address.toLowerCase().includes(wanted) || (device.peer ?? "").includes(wanted);

/** Devices by address: IPv4 by number, then all others by their letters. */
async function sorted(devices) {
  const named = [];
  const numbered = [];
  devices.forEach((device, index) => {
    const ip = ipv4(device.address);
    // Numbers are sorted without a function to compare them, in a few milliseconds; the index comes along.
    if (ip === undefined) named.push(device);
    else numbered.push(ip * 2 ** 21 + index);
  });
  await rest();
  const numbers = Float64Array.from(numbered).sort();
  await rest();
  const letters = new Map(named.map((device) => [device.address, device]));
  const names = [...letters.keys()].sort();
  await rest();
  return [...Array.from(numbers, (number) => devices[number % 2 ** 21]), ...names.map((name) => letters.get(name))];
}

function ipv4(address) {
  const parts = address.split(".");
  if (parts.length !== 4) return undefined;
  let number = 0;
  for (const part of parts) {
    if (!/^\d{1,3}$/.test(part)) return undefined;
    number = number * 256 + Number(part);
  }
  return number;
}

/** Lets the page draw and answer keys. A message comes sooner than a timer. */
function rest() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(0);
  });
}
