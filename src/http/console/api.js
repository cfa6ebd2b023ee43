// Asks the bridge. Every answer that is not the one hoped for becomes a `Problem` with a sentence for people.

import { token } from "./session.js";

/** For an answer that is made in memory; what waits on purpose says so. */
const TIMEOUT_MS = 8_000;

/** Why the bridge did not do what was asked; `status` 0 if there was no answer at all. */
export class Problem extends Error {
  constructor(status, detail, retryAfter) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** The answer's JSON, or null if it has none. */
export async function ask(path, { method = "GET", body, timeout = TIMEOUT_MS, signal } = {}) {
  const response = await request(path, { method, body, signal: within(timeout, signal) });
  try {
    return response.status === 204 ? null : await response.json();
  } catch (error) {
    throw unanswered(error, signal);
  }
}

/** The answer as a stream of text, for what is large or has no end. */
export async function stream(path, { signal } = {}) {
  // Only the beginning of the answer has to come in time.
  const begins = new AbortController();
  const late = setTimeout(() => begins.abort(new DOMException("no answer", "TimeoutError")), TIMEOUT_MS);
  try {
    const response = await request(path, { signal: AbortSignal.any([begins.signal, signal].filter(Boolean)) });
    return pieces(response.body.pipeThrough(new TextDecoderStream()).getReader());
  } finally {
    clearTimeout(late);
  }
}

/** By hand: not every browser can iterate over a stream. */
async function* pieces(reader) {
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** What happens, as it happens: `{kind, data}` each. The stream is open when this resolves. */
export async function events(kinds, prefix, { signal } = {}) {
  const query = new URLSearchParams({ kind: kinds.join(",") });
  if (prefix) query.set("prefix", prefix);
  return parsed(await stream(`/events?${query}`, { signal }));
}

/** Server-sent events, as far as the bridge uses them: an `event` and one line of `data` each. */
async function* parsed(text) {
  let rest = "";
  for await (const piece of text) {
    const blocks = (rest + piece).split("\n\n");
    rest = blocks.pop();
    const events = [];
    for (const block of blocks) {
      const event = /^event: ?(.*)$/m.exec(block);
      const data = /^data: ?(.*)$/m.exec(block);
      if (data) events.push({ kind: event?.[1] ?? "message", data: JSON.parse(data[1]) });
    }
    // All of a piece at once: whoever shows them need not draw for each.
    if (events.length > 0) yield events;
  }
}

async function request(path, { method = "GET", body, signal }) {
  const headers = {};
  if (token.get()) headers.authorization = `Bearer ${token.get()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, cache: "no-store", body: body && JSON.stringify(body) });
  } catch (error) {
    throw unanswered(error, signal);
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const detail = problem.detail || problem.title || `the bridge answered ${response.status}`;
  throw new Problem(response.status, detail, Number(response.headers.get("retry-after")) || undefined);
}

function unanswered(error, signal) {
  // Given up by whoever asked: nothing is wrong.
  if (error.name === "AbortError" && signal?.aborted) return error;
  return new Problem(0, error.name === "TimeoutError" ? "the bridge did not answer in time" : "the bridge cannot be reached");
}

const within = (timeout, signal) =>
  AbortSignal.any([AbortSignal.timeout(timeout), signal].filter(Boolean));
