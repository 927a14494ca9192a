/** The head of a page, the title of its tab, and the dot of its icon. */

import { place } from "../core/route.js";
import { html, plain, useEffect, useRef } from "../core/view.js";
import { Banner, Button, When } from "./basics.js";

/** Set the title of the tab. */
export function useTitle(title) {
  useEffect(() => {
    document.title = plain(`${title} · Tidemill`);
  }, [title]);
}

/** Put a dot on the icon of the tab until the user looks at it again. */
export function notice() {
  if (document.visibilityState === "visible") return;
  const icon = document.querySelector("link[rel=icon]");
  icon.href = "icon-dot.svg";
  document.addEventListener("visibilitychange", () => (icon.href = "icon.svg"), { once: true });
}

/** The path of the page before and of this one, and what ends the search for the row of the former. */
let before = null;
let present = null;
let stop = () => {};

/** After Back, focus the row of the page that the user comes from, once the list shows it; a user who goes on wins. */
function focusRow() {
  const href = `#${before}`;
  const watcher = new MutationObserver(look);
  const inputs = ["keydown", "pointerdown", "hashchange"];
  stop = () => {
    watcher.disconnect();
    for (const name of inputs) removeEventListener(name, stop);
  };
  function look() {
    const link = [...document.querySelectorAll(".row-link")].find((one) => one.getAttribute("href") === href);
    if (!link) return;
    link.focus({ preventScroll: true });
    stop();
  }
  for (const name of inputs) addEventListener(name, stop);
  watcher.observe(document.querySelector("main"), { childList: true, subtree: true });
  look();
}

/** Focus the heading of a new page, as a browser does that loads one, so that a screen reader says it. */
function useFocus(heading) {
  useEffect(() => {
    const { path } = place.peek();
    const isNew = path !== present;
    if (isNew) [before, present] = [present, path];
    const { activeElement: focused } = document;
    // The heading may have been replaced when the data came.
    if (!focused.matches("body, main, h1") && (!isNew || focused.closest("main, dialog, #search"))) return;
    heading.current.focus({ preventScroll: true });
    if (!isNew) return;
    stop();
    // An entry of the history with a scroll position was visited before.
    if (before && history.state?.y !== undefined) focusRow();
  }, []);
}

/**
 * A page: its heading, its actions, and its content.
 * @param {object} props
 * @param {string} props.title
 * @param {any} [props.heading] Instead of the title as text.
 * @param {any} [props.tools] Actions at the right.
 * @param {string} [props.tab] Title of the tab, if it says more.
 * @param {{error: Error|null, since: number|null, data: any, reload: () => void}} [props.live] Shows why data is old.
 */
export function Page({ title, heading, tools, tab = title, live, children }) {
  const ref = useRef(null);
  useTitle(tab);
  useFocus(ref);
  return html`
    <header class="page-head">
      <h1 tabindex="-1" ref=${ref}>${heading ?? title}</h1>
      <div class="tools">${tools}</div>
    </header>
    ${live?.error && html`<${Stale} ...${live} />`}
    ${children}
  `;
}

const Stale = ({ error, since, data, reload }) => html`
  <${Banner} tone="bad" action=${html`<${Button} act=${reload}>Try again<//>`}
    note=${data !== undefined && since && html`What you see is from <${When} at=${since} />.`}>${error.message}<//>
`;
