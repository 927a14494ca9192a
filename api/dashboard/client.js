/** The API as this page uses it: with the key that was typed in, which stays in this browser's open tabs. */

const KEY = "tidemill-key";
const BASE = "../v1";
const ANSWER_MS_MAX = 200;
const tabs = new BroadcastChannel(KEY);

/** The API said no, or did not answer (status 0). */
export class Fault extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const key = () => sessionStorage.getItem(KEY);
export const hasKey = () => key() !== null;
export const keep = (typed) => sessionStorage.setItem(KEY, typed);
export const forget = () => sessionStorage.removeItem(KEY);

/** Forget the key in every tab that has it. */
export function leave() {
  tabs.postMessage({ left: key() });
  forget();
}

/**
 * Take the key from another tab that is open, where one has it: a copied address opens signed in. Nothing of it
 * outlives the last tab.
 * @param {() => void} left Called when another tab has signed out.
 */
export function share(left) {
  // Other tabs answer all tabs at once: only one that has just opened takes a key.
  let asks = !hasKey();
  return new Promise((resolve) => {
    tabs.onmessage = ({ data }) => {
      if (data.asks && hasKey()) tabs.postMessage({ key: key() });
      if (data.key && asks) {
        asks = false;
        keep(data.key);
        resolve();
      }
      if (data.left && data.left === key()) {
        forget();
        left();
      }
    };
    if (hasKey()) {
      resolve();
      return;
    }
    tabs.postMessage({ asks: true });
    setTimeout(() => {
      asks = false;
      resolve();
    }, ANSWER_MS_MAX);
  });
}

/**
 * Make a call.
 * @param {string} method
 * @param {string} path Below `/v1`.
 * @param {object} [options]
 * @param {object} [options.query] Values that are empty or null are left out.
 * @param {object} [options.body] Sent as JSON.
 * @param {AbortSignal} [options.signal]
 * @param {string} [options.typed] A key to try, in place of the one that is kept.
 * @returns {Promise<any>} The answer's JSON.
 * @throws {Fault}
 */
export async function call(method, path, options = {}) {
  const answer = await send(method, path, options);
  return answer.json();
}

/** The bytes of a file, given to the browser to save. */
export async function save(fileId, name) {
  const answer = await send("GET", `/files/${encodeURIComponent(fileId)}/content`, {});
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

/**
 * Upload a file of lines.
 * @param {File} file
 * @param {(part: number) => void} told How much is sent, 0 to 1.
 * @returns {Promise<any>} The file object.
 */
export function upload(file, told) {
  const form = new FormData();
  form.append("purpose", "batch");
  form.append("file", file);
  return new Promise((resolve, reject) => {
    // fetch does not tell how much it has sent.
    const request = new XMLHttpRequest();
    request.open("POST", `${BASE}/files`);
    request.setRequestHeader("authorization", `Bearer ${key()}`);
    request.upload.onprogress = (event) => told(event.total ? event.loaded / event.total : 0);
    request.onerror = () => reject(new Fault(0, "The service does not answer."));
    request.onload = () => {
      if (request.status === 200) resolve(JSON.parse(request.responseText));
      else reject(new Fault(request.status, said(request.responseText, request.status)));
    };
    request.send(form);
  });
}

async function send(method, path, { query = {}, body, signal, typed = key() }) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const asked = given.length ? `?${new URLSearchParams(given)}` : "";
  const options = { method, headers: { authorization: `Bearer ${typed}` }, signal };
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(BASE + path + asked, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault(0, "The service does not answer.");
  }
  if (!answer.ok) throw new Fault(answer.status, said(await answer.text(), answer.status));
  return answer;
}

function said(text, status) {
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `The service answered with status ${status}.`;
  }
}
