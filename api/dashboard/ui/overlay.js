/** Elements above a page: toasts, dialogs and the side panel. */

import { keepFocus } from "../core/focus.js";
import { onEscape } from "../core/keys.js";
import { isNarrow } from "../core/prefs.js";
import { html, signal, useEffect, useRef, useState } from "../core/view.js";
import { Icon } from "./icons.js";
import { Said } from "./say.js";

const TOAST_MS = 6_000;
const TOASTS_MAX = 4;
/** @type {import("@preact/signals").Signal<{id: number, text: string, tone: string, link?: {href: string, title: string}}[]>} */
const toasts = signal([]);
/** The dialog that is open: a component, or null. */
const dialog = signal(null);
/** Why an action of that dialog failed: a toast would lie behind it. */
const fault = signal(null);
/** Reasons why only its buttons close that dialog: requests under way, and secrets shown once. */
let holds = 0;
let lastId = 0;
/** The file that was dropped on the page, for a new batch. @type {import("@preact/signals").Signal<File|null>} */
export const dropped = signal(null);

const dismiss = (id) => {
  toasts.value = toasts.value.filter((one) => one.id !== id);
};

/**
 * Say what happened. Failures stay until they are dismissed, other messages some seconds.
 * @param {string} text
 * @param {"good"|"bad"} [tone]
 * @param {{href: string, title: string}} [link] Where to go from here.
 */
export function toast(text, tone = "good", link) {
  const id = ++lastId;
  const others = toasts.value.filter((one) => one.text !== text);
  toasts.value = [...others, { id, text, tone, link }].slice(-TOASTS_MAX);
}

/** The id of the field that the service refuses, and why; or neither. */
export const wrong = signal({});

/**
 * Say that an action failed: at the field that is the parameter of the API, in the dialog that it belongs to, or as a toast.
 * @param {Error|null} error null takes back what was said before.
 * @param {Element} source Its button.
 */
export function report(error, source) {
  const field = error?.param && source.closest("dialog, main")?.querySelector(`#${CSS.escape(error.param)}`);
  wrong.value = field ? { id: field.id, message: error.message } : {};
  if (field) return field.focus();
  if (source.closest("dialog")) fault.value = error?.message ?? null;
  else if (error) toast(error.message, "bad");
}

function Toast({ id, text, tone, link }) {
  const ref = useRef(null);
  useEffect(() => {
    if (tone === "bad") return undefined;
    // It stays while the user is at it.
    const timer = setInterval(() => ref.current.matches(":hover, :focus-within") || dismiss(id), TOAST_MS);
    return () => clearInterval(timer);
  }, []);
  return html`
    <div class=${`toast ${tone}`} role=${tone === "bad" ? "alert" : "status"} ref=${ref}>
      <${Icon} name=${tone === "bad" ? "alert" : "check"} />
      <span>${text}</span>
      ${link && html`<a href=${link.href} onClick=${() => dismiss(id)}>${link.title}</a>`}
      <button type="button" class="button quiet square" aria-label="Dismiss" onClick=${() => dismiss(id)}>
        <${Icon} name="close" />
      </button>
    </div>
  `;
}

/**
 * Keep the dialog open at Escape and at a click beside it.
 * @returns {() => void} Ends it.
 */
export function hold() {
  holds += 1;
  return () => {
    holds -= 1;
  };
}

/** A modal dialog; the browser keeps the focus inside. Escape and a click beside it close it, unless something holds it. */
export function Dialog({ title, onClose, children }) {
  const ref = useRef(null);
  /** A press inside that ends outside, as when selecting text, is not a click beside the dialog. */
  const isBeside = useRef(false);
  useEffect(() => ref.current.showModal(), []);
  function click({ target }) {
    if (target === ref.current && isBeside.current && !holds) ref.current.close();
  }
  function closed() {
    // Browsers close a dialog at the second Escape even if the page prevents the first.
    if (holds) ref.current.showModal();
    else onClose();
  }
  return html`
    <dialog ref=${ref} aria-label=${title} onClose=${closed} onCancel=${(event) => holds && event.preventDefault()}
      onPointerDown=${({ target }) => (isBeside.current = target === ref.current)} onClick=${click}>
      <div class="dialog">
        <h2>${title}</h2>
        ${children}
        ${fault.value && html`<p class="bad" role="alert">${fault.value}</p>`}
        <${Said} />
      </div>
    </dialog>
  `;
}

/** Open a dialog: `make` gets the function that closes it, and gives its content. */
export function openDialog(title, make) {
  const close = () => {
    if (dialog.value === own) dialog.value = null;
  };
  fault.value = null;
  const own = { title, close, content: make(close) };
  dialog.value = own;
}

/**
 * Ask before something that cannot be undone. The button names what it does, as "Cancel 48,252 lines".
 * @param {{title: string, text: string, action: string, isDanger?: boolean, work: () => Promise<any>}} options
 */
export function confirm({ title, text, action, isDanger = true, work }) {
  openDialog(title, (close) => html`<${Question} ...${{ text, action, isDanger, work, close }} />`);
}

function Question({ text, action, isDanger, work, close }) {
  const [isBusy, setBusy] = useState(false);
  async function run() {
    const release = hold();
    setBusy(true);
    try {
      await work();
    } catch (error) {
      toast(error.message, "bad");
    }
    release();
    close();
  }
  return html`
    <p>${text}</p>
    <div class="buttons end">
      <button type="button" class="button" onClick=${close}>Keep</button>
      <button type="button" class=${isDanger ? "button danger" : "button primary"} aria-busy=${isBusy}
        disabled=${isBusy} onClick=${run}>${action}</button>
    </div>
  `;
}

/** While an element covers the page, the other parts of the frame take neither the focus nor a press. */
function useCover(ref, isCovering) {
  // Also what the page has put there since.
  useEffect(() => {
    const covered = [];
    for (let one = ref.current; isCovering && !one.matches(".frame"); one = one.parentElement)
      covered.push(...[...one.parentElement.children].filter((other) => other !== one && !other.inert));
    for (const one of covered) one.inert = true;
    return () => covered.forEach((one) => (one.inert = false));
  });
}

/**
 * A panel at the side of the page (the whole page on a phone) for one row of a list; Escape closes it.
 * @param {{title: string, onClose: () => void, tools?: any}} props
 */
export function Panel({ title, onClose, tools, children }) {
  const ref = useRef(null);
  useEffect(() => {
    ref.current.focus({ preventScroll: true });
    return onEscape(onClose);
  }, []);
  useCover(ref, isNarrow.value);
  return html`
    <div class="panel" role="dialog" aria-modal=${isNarrow.value} aria-label=${title} tabindex="-1" ref=${ref}>
      <header>
        <h2>${title}</h2>
        <div class="tools">${tools}</div>
        <button type="button" class="button quiet square" aria-label="Close" onClick=${onClose}>
          <${Icon} name="close" />
        </button>
      </header>
      <div key=${title} class="content">${children}</div>
    </div>
  `;
}

/** Takes a file that is dropped anywhere. @param {{onFile: (file: File) => void}} props */
export function DropLayer({ onFile }) {
  const [isOver, setOver] = useState(false);
  useEffect(() => {
    const hasFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    const over = (event) => {
      if (!hasFile(event)) return;
      event.preventDefault();
      setOver(true);
    };
    const leave = (event) => event.relatedTarget === null && setOver(false);
    const drop = (event) => {
      if (!hasFile(event)) return;
      event.preventDefault();
      setOver(false);
      if (event.dataTransfer.files[0]) onFile(event.dataTransfer.files[0]);
    };
    const listeners = { dragover: over, dragleave: leave, drop };
    for (const [name, listener] of Object.entries(listeners)) addEventListener(name, listener);
    return () => {
      for (const [name, listener] of Object.entries(listeners)) removeEventListener(name, listener);
    };
  }, []);
  return isOver && html`<div class="drop-layer"><p><${Icon} name="upload" />Drop the file to make a batch of it</p></div>`;
}

/** Close everything, as after a sign-out. */
export function clear() {
  toasts.value = [];
  dialog.value = null;
  dropped.value = null;
}

/** The place of toasts and dialogs, once in the frame. */
export function Overlays() {
  const open = dialog.value;
  useEffect(keepFocus, []);
  return html`
    <div class="toasts">${toasts.value.map((one) => html`<${Toast} key=${one.id} ...${one} />`)}</div>
    <${Said} />
    ${open && html`<${Dialog} key=${open.title} title=${open.title} onClose=${open.close}>${open.content}<//>`}
  `;
}
