/** Icons: 16 × 16 strokes in the colour of the text around them. They are decoration; words carry the meaning. */

import { html } from "../core/view.js";

const PATHS = {
  overview: "M2.5 2.5h4.5v6h-4.5zM9 2.5h4.5v3.5H9zM9 8h4.5v5.5H9zM2.5 10.5h4.5v3h-4.5z",
  batches: "M2.5 4h11M2.5 8h11M2.5 12h7",
  files: "M4 1.8h5l3.2 3.2v9.2H4zM9 1.8V5h3.2",
  servers: "M2.5 2.8h11v4.2h-11zM2.5 9h11v4.2h-11zM5 4.9h.01M5 11.1h.01",
  queues: "M2 12.5h3v-5H2zM6.5 12.5h3v-9h-3zM11 12.5h3v-7h-3z",
  usage: "M2 13.5h12M3 10.5l3-3.5 3 2 4-5.5",
  projects: "M2 13V3h4.5l1.5 2h6v8z",
  webhooks: "M8 6.2a2.4 2.4 0 1 0-2.3-1.8M7.9 4.4l2.6 5.1M5.4 5.8 3.3 9.7M3.5 9.7a2.4 2.4 0 1 0 2.4 2.6h4.4M10.4 9.6a2.4 2.4 0 1 1-.5 4",
  keys: "M9.8 9.2a3.6 3.6 0 1 0-3-3L2 11v3h3v-1.8h1.8v-1.8h1.8z",
  audit: "M8 1.8 13 3.6v4.2c0 3-2.2 5.2-5 6.4-2.8-1.2-5-3.4-5-6.4V3.6zM5.8 7.8l1.6 1.6 2.9-3",
  letters: "M2 4h12v8.5H2zM2 4.5l6 4.5 6-4.5",
  replay: "M3 8a5 5 0 1 0 1.6-3.6M3 2.5v3h3",
  settings: "M2 4.5h6M11.5 4.5H14M2 11.5h2.5M8 11.5h6M9.8 2.8v3.4M6.2 9.8v3.4",
  search: "M7 11.5a4.5 4.5 0 1 0 0-9 4.5 4.5 0 0 0 0 9zM10.3 10.3 14 14",
  light: "M8 10.8a2.8 2.8 0 1 0 0-5.6 2.8 2.8 0 0 0 0 5.6zM8 1.5V3M8 13v1.5M1.5 8H3M13 8h1.5M3.4 3.4l1 1M11.6 11.6l1 1M12.6 3.4l-1 1M4.4 11.6l-1 1",
  dark: "M13.5 9.6A5.8 5.8 0 0 1 6.4 2.5a5.8 5.8 0 1 0 7.1 7.1z",
  auto: "M8 14A6 6 0 1 0 8 2a6 6 0 0 0 0 12zM8 2v12M8 4.5l4.5 2M8 8h6M8 11.5l4-1.5",
  user: "M8 8.2a2.9 2.9 0 1 0 0-5.8 2.9 2.9 0 0 0 0 5.8zM2.8 14c.6-2.6 2.6-3.9 5.2-3.9s4.6 1.3 5.2 3.9",
  plus: "M8 3v10M3 8h10",
  download: "M8 2.2v8M4.8 7.2 8 10.4l3.2-3.2M2.8 13.6h10.4",
  copy: "M5.5 5.5h8v8h-8zM10.5 5.5v-3h-8v8h3",
  check: "M3 8.5l3.2 3.2L13 4.8",
  close: "M3.8 3.8l8.4 8.4M12.2 3.8l-8.4 8.4",
  more: "M3.5 8h.01M8 8h.01M12.5 8h.01",
  down: "M4 6l4 4 4-4",
  right: "M6 4l4 4-4 4",
  left: "M10 4 6 8l4 4",
  columns: "M2.5 3h11v10h-11zM6.2 3v10M9.8 3v10",
  filter: "M2 3.5h12l-4.6 5.2v4.2l-2.8-1.4V8.7z",
  upload: "M8 10.6v-8M4.8 5.6 8 2.4l3.2 3.2M2.8 13.6h10.4",
  alert: "M8 2 14.5 13.5h-13zM8 6.3v3.4M8 11.6h.01",
  info: "M8 14A6 6 0 1 0 8 2a6 6 0 0 0 0 12zM8 7.4v3.6M8 5h.01",
  compare: "M4.5 2.5v11M11.5 2.5v11M2 5.5 4.5 3 7 5.5M9 10.5l2.5 2.5 2.5-2.5",
  stop: "M4 4h8v8H4z",
};

/** @param {{name: keyof PATHS}} props */
export const Icon = ({ name }) => html`
  <svg class="icon" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true" focusable="false">
    <path d=${PATHS[name]} />
  </svg>
`;
