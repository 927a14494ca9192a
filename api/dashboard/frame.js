/** The frame around every page: the rail (a bar at the bottom of a phone), the top bar, and the keyboard. */

import { canWrite, may, session, signOut, switchProject } from "./core/client.js";
import { listen } from "./core/keys.js";
import { isNarrow, isRailOpen, shortcuts, theme, zone } from "./core/prefs.js";
import { batchPath, go, place } from "./core/route.js";
import { classes, html, useLayoutEffect } from "./core/view.js";
import { RAIL } from "./routes.js";
import { Button, LinkButton, Menu } from "./ui/basics.js";
import { Icon } from "./ui/icons.js";
import { DropLayer, dropped, openDialog, toast } from "./ui/overlay.js";

const IN_BAR = 4;
const THEMES = [["auto", "Like the system"], ["light", "Light"], ["dark", "Dark"]];
const ZONES = [["local", "Local time"], ["utc", "UTC"]];
const SHORTCUTS = [["on", "On"], ["off", "Off"]];
const BATCH_ID = /^(msg)?batch_[0-9A-Za-z]+$/;
const KEYS = [
  ["/", "Search"], ["j  k", "Next and previous row"], ["Enter", "Open the row"], ["x", "Select the row"],
  ["n", "New batch"], ["Esc", "Close what is open"], ["← →", "Move through a chart"], ["?", "This list"],
];

const entries = () => RAIL.filter(({ role = "read" }) => may(role));

const isAt = ({ href }) => place.value.path === href || (href !== "/" && place.value.path.startsWith(`${href}/`));

const Entry = ({ entry }) => html`
  <a href=${`#${entry.href}`} aria-current=${isAt(entry) ? "page" : undefined} title=${entry.title}>
    <${Icon} name=${entry.icon} /><span>${entry.title}</span>
  </a>
`;

function Rail() {
  const all = entries();
  const first = isNarrow.value ? all.slice(0, IN_BAR) : all;
  const rest = isNarrow.value ? all.slice(IN_BAR) : [];
  return html`
    <nav class="rail" aria-label="Pages">
      ${first.map((entry) => html`<${Entry} key=${entry.href} entry=${entry} />`)}
      ${rest.length > 0 &&
      html`<${Menu} icon="more" name="More pages">${rest.map((entry) => html`<${Entry} key=${entry.href} entry=${entry} />`)}<//>`}
      <button type="button" class="fold" aria-expanded=${isRailOpen.value}
        aria-label=${isRailOpen.value ? "Fold the rail" : "Unfold the rail"}
        onClick=${() => (isRailOpen.value = !isRailOpen.value)}>
        <${Icon} name=${isRailOpen.value ? "left" : "right"} />
      </button>
    </nav>
  `;
}

/** An id leads to its object; any other text searches the batches. */
function search(event) {
  event.preventDefault();
  const input = event.currentTarget.querySelector("input");
  const text = input.value.trim();
  if (!text) return;
  if (BATCH_ID.test(text)) go(batchPath(text));
  else go("/batches", { search: text });
  input.value = "";
  input.blur();
}

const Choices = ({ title, value, options, onChoose }) => html`
  <fieldset>
    <legend>${title}</legend>
    ${options.map(
      ([key, words]) => html`
        <label key=${key} class="choice">
          <input type="radio" name=${title} checked=${value === key} onChange=${() => onChoose(key)} />${words}
        </label>
      `,
    )}
  </fieldset>
`;

const failed = (error) => toast(error.message, "bad");

/** Switch the project; only pages of lists stay open, since objects belong to one project. */
function chooseProject(select) {
  const path = RAIL.some(({ href }) => href === place.value.path) ? undefined : "/";
  switchProject(select.value, path).catch((error) => {
    select.value = session.value?.project;
    failed(error);
  });
}

/** The project, or a choice of several. */
function Project() {
  const { project, projects } = session.value;
  if (projects.length < 2) return html`<span class="project" title="Project">${project}</span>`;
  return html`
    <select class="project" aria-label="Project" title="Project" value=${project} onChange=${({ currentTarget }) => chooseProject(currentTarget)}>
      ${projects.map((one) => html`<option key=${one} value=${one} selected=${one === project}>${one}</option>`)}
    </select>
  `;
}

const Account = () => html`
  <${Menu} icon="user" name="Account">
    <div class="who">
      ${isNarrow.value ? html`<${Project} />` : html`Project <strong>${session.value.project}</strong>`}<br />
      ${session.value.person ?? `Key ${session.value.key.name}`}, role ${session.value.role}
    </div>
    <${Choices} title="Theme" value=${theme.value} options=${THEMES} onChoose=${(key) => (theme.value = key)} />
    <${Choices} title="Times" value=${zone.value} options=${ZONES} onChoose=${(key) => (zone.value = key)} />
    <${Choices} title="Shortcuts" value=${shortcuts.value} options=${SHORTCUTS} onChoose=${(key) => (shortcuts.value = key)} />
    <button type="button" class="choice" onClick=${showKeys}>Keyboard</button>
    <button type="button" class="choice" onClick=${leave}>Sign out</button>
  <//>
`;

const TopBar = () => html`
  <header class="top">
    <a class="brand" href="#/"><img src="icon.svg" alt="" width="22" height="22" /><span>Tidemill</span></a>
    ${!isNarrow.value && html`<${Project} />`}
    <form class="search" role="search" onSubmit=${search}>
      <${Icon} name="search" />
      <input id="search" type="search" dir="auto" placeholder="Search names, ids, metadata" aria-label="Search" autocomplete="off" />
      <kbd aria-hidden="true">/</kbd>
    </form>
    <button type="button" class="button quiet zone" title="Switch between local time and UTC"
      onClick=${() => (zone.value = zone.value === "utc" ? "local" : "utc")}>
      ${zone.value === "utc" ? "UTC" : "Local"}
    </button>
    <${Button} kind="quiet" icon=${theme.value} label=${`Theme: ${THEMES.find(([key]) => key === theme.value)[1]}`}
      act=${() => (theme.value = { auto: "light", light: "dark", dark: "auto" }[theme.value])} />
    ${canWrite() && html`<${LinkButton} href="#/new" kind="new" icon="plus"><span>New batch</span><//>`}
    <${Account} />
  </header>
`;

const leave = () => signOut().catch(failed);

function showKeys() {
  const pages = entries().filter(({ key }) => key).map(({ key, title }) => [`g  ${key}`, title]);
  openDialog("Keyboard", (close) => html`
    <dl class="keys">
      ${[...KEYS, ...pages].map(
        ([keys, words]) => html`<div key=${keys}><dt>${keys.split("  ").map((key) => html`<kbd>${key}</kbd> `)}</dt><dd>${words}</dd></div>`,
      )}
    </dl>
    <div class="buttons end"><button type="button" class="button" onClick=${close}>Close</button></div>
  `);
}

function takeFile(file) {
  dropped.value = file;
  go("/new");
}

/** Go to a page by a key, but not away from a file, which a key pressed by mistake would lose. */
function goByKey(path) {
  if (path === place.peek().path) return;
  if (dropped.value) toast("Start the batch or discard its file first.", "bad");
  else go(path);
}

export function Frame({ children }) {
  useLayoutEffect(() => {
    const pages = Object.fromEntries(RAIL.filter(({ key }) => key).map(({ key, href }) => [key, () => goByKey(href)]));
    return listen({
      pages,
      search: () => document.querySelector("#search").focus(),
      help: showKeys,
      create: () => canWrite() && goByKey("/new"),
    });
  }, []);
  return html`
    <div class=${classes("frame", isRailOpen.value && "open")}>
      <a class="skip" href="#main" onClick=${(event) => {
        event.preventDefault();
        document.querySelector("main").focus();
      }}>To the content</a>
      <${TopBar} />
      <${Rail} />
      ${canWrite() && html`<${DropLayer} onFile=${takeFile} />`}
      <main id="main" tabindex="-1">${children}</main>
    </div>
  `;
}
