/** An answer by its kind: text, JSON, images, embeddings. It is shown as text and pictures, never as HTML. */

import { brief, count, number } from "../../core/format.js";
import { html, useEffect, useMemo, useState } from "../../core/view.js";
import { Json } from "../../ui/basics.js";
import { Spark } from "../../ui/chart.js";
import { list, texts } from "./texts.js";

const PREVIEW = 200;
const IMAGES_MAX = 8;
const VECTORS_MAX = 8;
const RASTER = [["iVBOR", "image/png"], ["/9j/", "image/jpeg"], ["UklGR", "image/webp"], ["R0lGOD", "image/gif"]];

const vectorsOf = (body) => list(body?.data).map((item) => item?.embedding).filter(Array.isArray);
const picturesOf = (body) => list(body?.data).map((item) => item?.b64_json).filter((text) => typeof text === "string");

/** The text of an error, or of a part of one, as schemas/jsonl/server_error.py finds it; empty if there is none. */
function said(value) {
  if (Array.isArray(value)) return value.map((each) => (typeof each === "object" ? said(each) : "")).filter(Boolean).join("; ");
  if (!value || typeof value !== "object") return typeof value === "string" ? value.trim() : "";
  return said(value.message) || said(value.detail) || said(value.msg) || said(value.error);
}

/** A server may send any type in place of a text. */
const worded = (value) => (typeof value === "string" ? value : JSON.stringify(value));

/** The fields of the error in a body: `error`, or those beside a message. */
export const errorIn = (body) =>
  body?.error && typeof body.error === "object" && !Array.isArray(body.error) ? body.error : said(body?.message) ? body : null;

/** The error in words, or null. */
export function faultOf({ response, error }) {
  if (error?.message) return worded(error.message);
  if (!(response?.status_code >= 300)) return null;
  const { body } = response;
  return said(body?.error) || said(body) || worded(body?.error?.message ?? body);
}

/** The beginning of a fault or an answer. */
export function preview(result) {
  const body = result.response?.body;
  const fault = faultOf(result);
  const vectors = vectorsOf(body);
  const text = fault ?? texts(body)[0] ?? (vectors.length ? `${count(vectors.length, "embedding")} of ${number(vectors[0].length)}` : null);
  const pictures = picturesOf(body).length;
  return String(text ?? (pictures ? count(pictures, "image") : JSON.stringify(body ?? null))).slice(0, PREVIEW);
}

/** The tokens that the batch counts for a line: in, out, and together; null if it counts none, or they are unknown. */
export function tokensOf({ tidemill }) {
  const { input_tokens: into, output_tokens: out } = tidemill ?? {};
  return into === undefined ? null : { into, out, total: into + out };
}

/** A text that is JSON is shown as such. */
function parsed(text) {
  if (!/^\s*[[{]/.test(text)) return undefined;
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const Text = ({ text }) => {
  const value = useMemo(() => parsed(text), [text]);
  return value === undefined ? html`<div class="prose" tabindex="0">${text}</div>` : html`<${Json} value=${value} />`;
};

/** A picture of base64 as a blob, so that no other scheme is allowed. */
function Picture({ text, place }) {
  const [address, setAddress] = useState(null);
  const type = RASTER.find(([start]) => text.startsWith(start))?.[1];
  useEffect(() => {
    if (!type) return undefined;
    let made;
    try {
      made = URL.createObjectURL(new Blob([Uint8Array.from(atob(text), (char) => char.charCodeAt(0))], { type }));
      setAddress(made);
    } catch {
      // Not base64: shown as JSON.
    }
    return () => made && URL.revokeObjectURL(made);
  }, [text]);
  return address
    ? html`<img class="picture" src=${address} alt=${`Image ${place + 1} of the answer`} />`
    : html`<p class="muted">An image that this page cannot show (${brief(text.length)} characters).</p>`;
}

const Vector = ({ values }) => html`
  <div class="vector">
    <${Spark} values=${values} label=${`Embedding of ${count(values.length, "number")}`} width=${560} height=${56} />
    <p class="muted small">${count(values.length, "number")}, length ${Math.hypot(...values).toFixed(3)}, from ${Math.min(...values).toFixed(3)} to ${Math.max(...values).toFixed(3)}</p>
  </div>
`;

/** The answer of a line. */
export function Answer({ result }) {
  const body = result.response?.body;
  const fault = faultOf(result);
  if (fault !== null) return html`<div class="prose bad-box" tabindex="0">${fault}</div>`;
  const made = texts(body);
  const vectors = vectorsOf(body);
  const pictures = picturesOf(body);
  if (made.length) return made.map((text, place) => html`<${Text} key=${place} text=${text} />`);
  if (pictures.length) return pictures.slice(0, IMAGES_MAX).map((text, place) => html`<${Picture} key=${place} text=${text} place=${place} />`);
  if (vectors.length) return vectors.slice(0, VECTORS_MAX).map((values, place) => html`<${Vector} key=${place} values=${values} />`);
  return html`<${Json} value=${body ?? null} />`;
}
