/** Keeps the focus: if the focused element goes away, the nearest element that stays gets the focus, never the document. */

/** The focused element and what is around it, from the inside out; around a dialog or panel is what had the focus before. */
let around = [];
/** @type {WeakMap<Element, Element[]>} */
const before = new WeakMap();

function remember({ target }) {
  const path = [];
  for (let one = target; one && one !== document.body; one = one.parentElement) path.push(one);
  const layer = path.findIndex((one) => one.matches("dialog, [role=dialog]"));
  if (layer >= 0 && !around.includes(path[layer])) before.set(path[layer], around.filter(({ isConnected }) => isConnected));
  around = layer < 0 ? path : [...path.slice(0, layer + 1), ...before.get(path[layer])];
}

/** Whether an element can have the focus: it does not if it is hidden, or disabled. */
const isThere = (element) => element.checkVisibility() && !element.disabled;

function restore() {
  if (document.activeElement !== document.body || !around.length || isThere(around[0])) return;
  for (const one of [...around, document.querySelector("dialog[open]"), document.querySelector("main")]) {
    const next = one?.matches("main") ? (one.querySelector("h1") ?? one) : one;
    // What has a name can be said, and so take the focus.
    if (next?.isConnected && next.tabIndex < 0 && next.matches("[aria-label], h1")) next.tabIndex = -1;
    next?.focus({ preventScroll: true });
    if (document.activeElement === next) return;
  }
}

/**
 * Keep the focus from now on.
 * @returns {() => void} Ends it.
 */
export function keepFocus() {
  let isDue = false;
  const watcher = new MutationObserver(() => {
    if (isDue) return;
    isDue = true;
    // Browsers take the focus from a hidden or disabled element when they draw the next frame.
    requestAnimationFrame(() => setTimeout(() => {
      isDue = false;
      restore();
    }));
  });
  watcher.observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["disabled", "open"] });
  addEventListener("focusin", remember);
  return () => {
    watcher.disconnect();
    removeEventListener("focusin", remember);
  };
}
