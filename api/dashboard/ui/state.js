/** State as a dot and a word, and progress as a bar: the same for every object of the service. */

import { number } from "../core/format.js";
import { html } from "../core/view.js";

/** A shape for each tone, so that colour never stands alone. */
const SHAPES = {
  running: html`<circle cx="6" cy="6" r="5.5" class="soft" /><circle cx="6" cy="6" r="3" />`,
  done: html`<circle cx="6" cy="6" r="5.5" /><path d="M3.4 6.2 5.3 8l3.3-3.8" class="mark" />`,
  part: html`<circle cx="6" cy="6" r="4.8" class="ring" /><path d="M6 1.2a4.8 4.8 0 0 1 0 9.6z" />`,
  failed: html`<circle cx="6" cy="6" r="5.5" /><path d="M4.1 4.1l3.8 3.8M7.9 4.1 4.1 7.9" class="mark" />`,
  waiting: html`<circle cx="6" cy="6" r="4.8" class="ring" /><path d="M6 3.4V6l1.8 1.2" class="line" />`,
  cancelled: html`<circle cx="6" cy="6" r="4.8" class="ring" /><path d="M2.8 9.2 9.2 2.8" class="line" />`,
};

/** @param {{tone: keyof SHAPES, children: any}} props */
export const State = ({ tone, children }) => html`
  <span class=${`state ${tone}`}>
    <svg viewBox="0 0 12 12" width="12" height="12" aria-hidden="true">${SHAPES[tone]}</svg>
    <span>${children}</span>
  </span>
`;

/**
 * A bar of what is done and what failed.
 * @param {{label: string, done: number, failed?: number, total: number, isBig?: boolean}} props
 */
export function Progress({ label, done, failed = 0, total, isBig }) {
  const share = (count) => ({ width: total ? `${Math.min(100, (100 * count) / total)}%` : "0" });
  return html`
    <span class=${isBig ? "bar big" : "bar"} role="progressbar" aria-label=${label} aria-valuemin="0"
      aria-valuemax=${Math.max(1, total)} aria-valuenow=${Math.min(done + failed, Math.max(1, total))}
      aria-valuetext=${`${number(done)} done, ${number(failed)} failed, of ${number(total)}`}>
      <span class="done" style=${share(done)} /><span class="failed" style=${share(failed)} />
    </span>
  `;
}
