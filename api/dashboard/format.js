/** Numbers and times as people read them. */

const whole = new Intl.NumberFormat("en");
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export const number = (value) => whole.format(value);

/** A rate, lines a second: one digit behind the point where there are few. */
export const rate = (value) => `${value < 10 ? value.toFixed(1) : number(Math.round(value))} lines/s`;

export function bytes(value) {
  let power = 0;
  while (value >= 1024 && power < UNITS.length - 1) {
    value /= 1024;
    power += 1;
  }
  return `${power && value < 10 ? value.toFixed(1) : Math.round(value)} ${UNITS[power]}`;
}

/** Seconds as `2 d 3 h`, `4 min 5 s`: two units at the most. */
export function duration(seconds) {
  const parts = [];
  let rest = Math.max(0, Math.round(seconds));
  for (const [unit, length] of [
    ["d", 86400],
    ["h", 3600],
    ["min", 60],
    ["s", 1],
  ]) {
    const count = Math.floor(rest / length);
    rest -= count * length;
    if (count) parts.push(`${count} ${unit}`);
  }
  return parts.slice(0, 2).join(" ") || "0 s";
}

/** A moment, Unix seconds, in the reader's own time. */
export const moment = (seconds) => new Date(seconds * 1000).toLocaleString();

/** How long ago or ahead a moment is. */
export function distance(seconds, now = Date.now() / 1000) {
  return seconds > now ? `in ${duration(seconds - now)}` : `${duration(now - seconds)} ago`;
}

/** An exact decimal, cut for reading; the whole of it is in the API and in the CSV. */
export function cost(text) {
  const value = Number(text);
  return value === 0 ? "0" : value.toPrecision(value < 1 ? 3 : 6).replace(/\.?0+$/, "");
}
