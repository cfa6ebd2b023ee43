// Numbers and times as people read them.

const NUMBER = new Intl.NumberFormat("en");
const DAY = 86_400_000;

export const count = (number) => NUMBER.format(number);

export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** A moment's local time; of another day its date as well, or alone if `isBrief`. `exact` shows milliseconds. */
export function clock(moment, { exact = false, isBrief = false } = {}) {
  const date = new Date(moment);
  if (Number.isNaN(date.getTime())) return "–";
  const time = date.toTimeString().slice(0, 8) + (exact ? `.${String(date.getMilliseconds()).padStart(3, "0")}` : "");
  const isToday = date.toDateString() === new Date().toDateString();
  if (isToday) return time;
  return isBrief ? day(date) : `${day(date)} ${time}`;
}

function day(date) {
  const two = (number) => String(number).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

/** A length of time, in its two largest units or with two or three digits. */
export function duration(ms) {
  if (ms < 0) return `−${duration(-ms)}`;
  if (ms < 1000) return `${short(ms)} ms`;
  if (ms < 60_000) return `${short(ms / 1000)} s`;
  const [d, hours, min, sec] = [ms / DAY, (ms % DAY) / 3_600_000, (ms % 3_600_000) / 60_000, (ms % 60_000) / 1000].map(Math.floor);
  if (d > 0) return `${d} d ${hours} h`;
  return hours > 0 ? `${hours} h ${min} min` : `${min} min ${sec} s`;
}

/** A number with as many digits as say something. */
export function short(number) {
  if (number === 0) return "0";
  if (number < 1) return number.toFixed(2).replace(/0$/, "");
  if (number < 10) return number.toFixed(1).replace(/\.0$/, "");
  return NUMBER.format(Math.round(number));
}

/** Reads `500ms`, `30s`, `5m`, `1h`; undefined if it is none, null if it is empty. */
export function milliseconds(text) {
  const trimmed = text.trim();
  if (trimmed === "") return null;
  const parts = /^(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)$/.exec(trimmed);
  if (!parts) return undefined;
  return Math.round(Number(parts[1]) * { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: DAY }[parts[2]]);
}
