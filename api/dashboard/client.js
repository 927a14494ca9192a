/** The API as this page uses it: with the key that was typed in, which stays in this tab. */

const KEY = "tidemill-key";
const BASE = "../v1";

/** The API said no, or did not answer (status 0). */
export class Fault extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const keep = (key) => sessionStorage.setItem(KEY, key);
export const forget = () => sessionStorage.removeItem(KEY);

const headers = () => ({ authorization: `Bearer ${sessionStorage.getItem(KEY)}` });

/**
 * Make a call.
 * @param {string} method
 * @param {string} path Below `/v1`.
 * @param {object} [options]
 * @param {object} [options.query] Values that are empty or null are left out.
 * @param {object} [options.body] Sent as JSON.
 * @param {AbortSignal} [options.signal]
 * @returns {Promise<any>} The answer's JSON.
 * @throws {Fault}
 */
export async function call(method, path, { query = {}, body, signal } = {}) {
  const answer = await send(method, path, { query, body, signal });
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
    request.setRequestHeader("authorization", headers().authorization);
    request.upload.onprogress = (event) => told(event.total ? event.loaded / event.total : 0);
    request.onerror = () => reject(new Fault(0, "The service does not answer."));
    request.onload = () => {
      if (request.status === 200) resolve(JSON.parse(request.responseText));
      else reject(new Fault(request.status, said(request.responseText, request.status)));
    };
    request.send(form);
  });
}

async function send(method, path, { query = {}, body, signal }) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const asked = given.length ? `?${new URLSearchParams(given)}` : "";
  const options = { method, headers: headers(), signal };
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
