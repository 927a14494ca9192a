/** Starts the dashboard: who is signed in, and the page of the address in its frame. */

import { moved, refused, resume, session, signOut, switchProject, unknown } from "./core/client.js";
import { close } from "./core/events.js";
import { forget } from "./core/live.js";
import { place, start } from "./core/route.js";
import { effect, html, render, useEffect, useState } from "./core/view.js";
import { Frame } from "./frame.js";
import { ROUTES } from "./routes.js";
import { SignIn } from "./sign-in.js";
import { Button, Empty, LinkButton, Skeleton } from "./ui/basics.js";
import { clear, Overlays, toast } from "./ui/overlay.js";
import { Page } from "./ui/page.js";

const loaded = new Map();

const NoPage = () => html`
  <${Page} title="There is no such page">
    <${Empty} action=${html`<${LinkButton} href="#/batches">All batches<//>`}>The address is wrong, or the page has moved.<//>
  <//>
`;

const Failed = ({ error }) => html`
  <${Page} title="The page did not load">
    <${Empty} action=${html`<${Button} kind="primary" act=${() => location.reload()}>Reload<//>`}>${error.message}<//>
  <//>
`;

/** In place of the pages of a project that the user may not see, or that the service does not open now. */
function NoProject() {
  const { project, person, key } = session.value;
  const { project: wanted, error } = refused.value;
  const go = html`<${Button} kind=${error ? "" : "primary"} act=${() => switchProject(project, "/")}>Go to ${project}<//>`;
  return html`
    <${Page} title=${`The project ${wanted} cannot be shown`}>
      <${Empty} action=${html`<div class="buttons">${error && html`<${Button} kind="primary" act=${resume}>Try again<//>`}${go}${!error && html`<${Button} act=${signOut}>Sign out<//>`}</div>`}>
        ${error ? error.message : `The address leads to the project ${wanted}, which does not exist, or which ${person ?? `the key ${key.name}`} may not see.`}
      <//>
    <//>
  `;
}

/** The component of a route, once its module is loaded, and why it did not load; the next visit tries again. */
function useModule(route) {
  const [failed, setFailed] = useState({});
  const found = loaded.get(route);
  useEffect(() => {
    // Check the rendered value: another component may have loaded it since.
    setFailed({});
    if (!route || found) return;
    route.load().then(
      (module) => {
        loaded.set(route, module.default);
        setFailed({});
      },
      (error) => setFailed({ route, error }),
    );
  }, [route]);
  return [found, failed.route === route ? failed.error : null];
}

/** A part of the path; one that cannot be decoded names nothing. */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function Routed() {
  const { path } = place.value;
  const route = ROUTES.find((one) => one.path.test(path));
  const [Content, error] = useModule(route);
  if (!route) return html`<${NoPage} />`;
  if (error) return html`<${Failed} error=${error} />`;
  if (!Content) return html`<${Skeleton} rows=${6} height=${32} />`;
  return html`<${Content} key=${path} params=${route.path.exec(path).slice(1).map(decoded)} />`;
}

/** Until it is known who is signed in. */
function Waiting() {
  const { value: error } = unknown;
  if (!error) return html`<${Skeleton} rows=${6} height=${32} />`;
  return html`<main><${Page} title="Tidemill" tab="Not loaded" live=${{ error, reload: resume }} /></main>`;
}

function App() {
  if (session.value === undefined) return html`<${Waiting} />`;
  return html`
    ${session.value === null ? html`<${SignIn} />` : html`<${Frame} key=${`${session.value.id} ${session.value.project}`}><${refused.value ? NoProject : Routed} /><//>`}
    <${Overlays} />
  `;
}

start();
effect(() => {
  if (session.value !== null) return;
  forget();
  clear();
  close();
});
effect(() => {
  const { value } = moved;
  // Apart from the effect, which would follow the toasts, too.
  if (value) queueMicrotask(() => toast(`Another tab has gone to the project ${value.project}. Back returns.`));
});
const app = document.querySelector("#app");
app.replaceChildren();
render(html`<${App} />`, app);
resume();
