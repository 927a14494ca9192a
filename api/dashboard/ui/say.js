/** Says to a screen reader what others see: where the focus is not, a change of the page is silent. */

import { html, plain, signal, useEffect } from "../core/view.js";

/** Each text has an element of its own, so that one which comes twice is said twice. */
const said = signal({ id: 0, text: "" });
/** Whether the user has asked for other rows, whose number is not yet said. */
let isAwaited = false;

export const say = (text) => {
  said.value = { id: said.peek().id + 1, text: plain(text) };
};

/** Say a text when it changes, and nothing while it is empty. */
export function useSay(text) {
  useEffect(() => {
    if (text) say(text);
  }, [text]);
}

/** The user has changed a filter: `sayResult` says what comes of it. */
export const awaitResult = () => {
  isAwaited = true;
};

export function sayResult(text) {
  if (isAwaited) say(text);
  isAwaited = false;
}

/** The place of what is said: one in the frame, and one in a dialog, outside of which nothing is heard. */
export function Said() {
  const { id, text } = said.value;
  return html`<div class="unseen" role="status"><span key=${id}>${text}</span></div>`;
}
