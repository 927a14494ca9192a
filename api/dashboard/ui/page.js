/** The head of a page, the title of its tab, and the dot of its icon. */

import { html, useEffect } from "../core/view.js";
import { Banner, Button, When } from "./basics.js";

/** Set the title of the tab. */
export function useTitle(title) {
  useEffect(() => {
    document.title = `${title} · Tidemill`;
  }, [title]);
}

/** Put a dot on the icon of the tab until the user looks at it again. */
export function notice() {
  if (document.visibilityState === "visible") return;
  const icon = document.querySelector("link[rel=icon]");
  icon.href = "icon-dot.svg";
  document.addEventListener("visibilitychange", () => (icon.href = "icon.svg"), { once: true });
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
  useTitle(tab);
  return html`
    <header class="page-head">
      <h1>${heading ?? title}</h1>
      <div class="tools">${tools}</div>
    </header>
    ${live?.error && html`<${Stale} ...${live} />`}
    ${children}
  `;
}

const Stale = ({ error, since, data, reload }) => html`
  <${Banner} tone="bad" action=${html`<${Button} act=${reload}>Try again<//>`}>
    ${error.message}${data !== undefined && since && html` What you see is from <${When} at=${since} />.`}
  <//>
`;
