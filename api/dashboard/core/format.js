/** Numbers and times as people read them. */

import { zone } from "./prefs.js";

const whole = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const BYTES = ["B", "KiB", "MiB", "GiB", "TiB"];
const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

/** `48,252` */
export const number = (value) => whole.format(value);

/** `48.3K`, for axes and small places. */
export const brief = (value) => compact.format(value);

/** `1 line`, `2 lines` */
export const count = (value, noun, plural = `${noun}s`) => `${number(value)} ${value === 1 ? noun : plural}`;

/** Lines a second, with one digit after the point if there are few; of very few, lines a minute. */
export function rate(value) {
  if (value > 0 && value < 0.1) return `${(60 * value).toFixed(value < 0.01 ? 2 : 1)} lines/min`;
  return `${value < 10 ? value.toFixed(1) : number(Math.round(value))} lines/s`;
}

/** A share of a whole: `2.5 %`. */
export function percent(part, of) {
  if (!of) return "0 %";
  const value = (100 * part) / of;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  return `${value > 0 && value < 10 ? value.toFixed(1).replace(/\.0$/, "") : Math.floor(value)} %`;
}

export function bytes(value) {
  let power = 0;
  while (value >= 1024 && power < BYTES.length - 1) {
    value /= 1024;
    power += 1;
  }
  return `${power && value < 10 ? value.toFixed(1) : Math.round(value)} ${BYTES[power]}`;
}

/** Seconds as `2 d 3 h` or `4 min 5 s`: a unit, and the next one if there is some. */
export function duration(seconds) {
  const parts = [];
  let rest = Math.max(0, Math.round(seconds));
  for (const [unit, length] of UNITS) {
    const found = Math.floor(rest / length);
    rest -= found * length;
    if (found) parts.push(`${found} ${unit}`);
    else if (parts.length) break;
  }
  return parts.slice(0, 2).join(" ") || "0 s";
}

/** A short time: `412 ms`, `3.1 s`, and longer ones as `duration` has them. */
export function elapsed(seconds) {
  if (seconds < 1) return `${Math.round(1000 * seconds)} ms`;
  return seconds < 60 ? `${seconds.toFixed(1)} s` : duration(seconds);
}

/** Seconds in the largest unit: `3 h`. */
export function age(seconds) {
  const [unit, length] = UNITS.find(([, size]) => seconds >= size) ?? UNITS.at(-1);
  return `${Math.max(0, Math.floor(seconds / length))} ${unit}`;
}

/** Seconds that count as "just now": clocks differ, and pages show times some seconds late. */
const NEAR = 6;

/** How long ago or ahead a moment is, in Unix seconds. */
export function distance(seconds, now = Date.now() / 1000) {
  if (Math.abs(seconds - now) < NEAR) return "just now";
  return seconds > now ? `in ${duration(seconds - now)}` : `${age(now - seconds)} ago`;
}

/** A moment with its zone, as the user has chosen: `2026-11-28 22:45:01 UTC`. */
export function moment(seconds) {
  const at = new Date(seconds * 1000);
  if (zone.value === "utc") return `${at.toISOString().slice(0, 19).replace("T", " ")} UTC`;
  const shifted = new Date(at.getTime() - at.getTimezoneOffset() * 60_000).toISOString();
  const name = new Intl.DateTimeFormat("en", { timeZoneName: "short" }).formatToParts(at).at(-1).value;
  return `${shifted.slice(0, 19).replace("T", " ")} ${name}`;
}

/** Seconds of a day. */
export const DAY = 86_400;
/** The day in UTC of a moment: `2026-11-28`. */
export const day = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 10);

/** The time of day: `22:45`. */
export const clock = (seconds, chars = 5) => moment(seconds).slice(11, 11 + chars);

/** An exact decimal, cut for reading; the API and the CSV have all digits. */
export function cost(text) {
  const value = Number(text);
  if (value === 0) return "0";
  return value < 1 ? value.toLocaleString("en", { maximumSignificantDigits: 3 }) : value.toLocaleString("en", { maximumFractionDigits: 2 });
}

/** The cost of an estimate; its `max` is null without a bound. */
export function costRange({ is_free: isFree, max, min }) {
  if (isFree) return "none: no price is set";
  if (max === null) return Number(min) ? `at least ${cost(min)}` : "known at the end";
  return Number(min) === Number(max) ? cost(max) : `${cost(min)} to ${cost(max)}`;
}

/** The end of an id, by which people tell ids apart. */
export const short = (id) => `…${id.slice(-8)}`;
