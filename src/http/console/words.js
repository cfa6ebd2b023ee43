// The words for what becomes of commands, how devices are and why connections ended: shape, tone, and a sentence.

const GOOD = { shape: "good", tone: "good" };
const BAD = { shape: "bad", tone: "bad" };

const OUTCOMES = {
  written: { ...GOOD, title: "the kernel took every byte of the line" },
  received: { ...GOOD, title: "the device's TCP stack acknowledged every byte" },
  answered: { ...GOOD, title: "the device sent a line back" },
  parked: { shape: "parked", tone: "wait", title: "it waits in the broker for its device; a final outcome follows" },
  offline: { ...BAD, title: "the device was not connected, or left before a byte was written" },
  expired: { ...BAD, title: "its time to live ended before the write" },
  invalid: { ...BAD, title: "it cannot be decoded, or cannot be one line" },
  overloaded: { ...BAD, title: "the device does not read, and no more may wait for it" },
  unanswered: { ...BAD, title: "it was written, and the proof it asked for did not come in time" },
  uncertain: { shape: "unsure", tone: "bad", title: "the connection ended after the write had begun and before the proof" },
};

const DEVICES = {
  online: { shape: "online", tone: "good", title: "connected" },
  silent: { shape: "silent", tone: "wait", title: "connected, and has sent nothing for longer than DEVICE_SILENCE_LIMIT" },
  waiting: { shape: "waiting", tone: "wait", title: "connected, and commands wait for it: it does not read" },
  away: { shape: "away", tone: "quiet", title: "not connected" },
};

const ENDS = {
  closed: "the device closed it",
  reset: "the device reset it",
  timeout: "the link died: nothing was acknowledged any more",
  write_timeout: "the device did not read",
  line_too_long: "the device sent a line longer than allowed",
  line_timeout: "the device began a line and did not end it",
  malformed: "what the device sent cannot be read",
  heartbeat_timeout: "the device sent no heartbeat",
  replaced: "the device connected again",
  shutdown: "the bridge was stopped",
  bridge_lost: "the bridge died, and the device has not come back",
  error: "an error of the socket",
};

/** In the order in which charts stack them. */
export const OUTCOME_WORDS = Object.keys(OUTCOMES);

/** What a badge needs; `undefined` is a command that is still on its way. */
export function outcome(word) {
  if (!word) return { shape: "pending", tone: "quiet", word: "on its way", title: "no outcome is known yet" };
  return { ...(OUTCOMES[word] ?? { shape: "unknown", tone: "quiet" }), word };
}

export const isDelivered = (word) => OUTCOMES[word]?.tone === "good";
export const isFinal = (word) => Boolean(word) && word !== "parked";

export const device = (word) => ({ ...DEVICES[word], word });

export const ended = (reason) => ENDS[reason] ?? reason;
