/** Imports of every component: Preact, its hooks and signals, and `html`, which makes elements of a template. */

import { h } from "preact";
import htm from "htm";

export { cloneElement, render } from "preact";
export { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
export { effect, signal } from "@preact/signals";

/** Characters that turn the direction of what follows them, and so show another text than the one that is there. */
const TURNS = /[\u202A-\u202E\u2066-\u2069]/g;

/** A text, or texts, without such characters. */
export function plain(value) {
  if (typeof value === "string") return value.replace(TURNS, "\uFFFD");
  return Array.isArray(value) ? value.map(plain) : value;
}

/** Values become text or attributes; there is no way to insert HTML. */
export const html = htm.bind((type, props, ...children) => h(type, props?.title ? { ...props, title: plain(props.title) } : props, ...children.map(plain)));

/** Join class names; false ones are left out. */
export const classes = (...names) => names.filter(Boolean).join(" ");
