/** Sums as CSV, as `tidemill usage --csv` writes them. */

const NUMBERS = ["batches", "lines", "copies", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "images", "audio_seconds"];
const COSTS = ["input", "output", "units", "total"];
/** First characters of a cell that a spreadsheet reads as a formula: names of models come from users. */
const FORMULA = /^[=+\-@\t\r]/;
const KEPT_MS = 60_000;

function cell(value) {
  const text = FORMULA.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** @param {object[]} sums Of the API. @param {string[]} by Their groups. */
export function csvOf(sums, by) {
  const head = [...by, ...NUMBERS, ...COSTS.map((part) => `cost_${part}`)];
  const rows = sums.map((sum) => [...by.map((name) => sum[name] ?? ""), ...NUMBERS.map((name) => sum[name]), ...COSTS.map((part) => sum.cost[part])]);
  return [head, ...rows].map((row) => `${row.map(cell).join(",")}\n`).join("");
}

/** Let the browser save a text as a file. */
export function saveText(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), KEPT_MS);
}
