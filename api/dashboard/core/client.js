/** The public API, as any client uses it, with the cookie of a session in place of a key. */

import { goToProject, keepProject, projectOf } from "./route.js";
import { signal } from "./view.js";

const BASE = "../v1";
const SESSION = "../dashboard/session";
const SIGN_IN = "../dashboard/sign-in";
const PLACE_CHARS_MAX = 1024;
/** A call that takes longer has no answer: it may wait for its turn, and one that changes something for a server. */
const READ_MS_MAX = 45_000;
const WRITE_MS_MAX = 60_000;
const RESUME_MS = 5_000;
const SILENT = "The service does not answer.";
/** No form and no link of another page can set this header; see docs/reference/api/sessions.md. */
const OWN = { "x-tidemill-csrf": "1" };
const tabs = new BroadcastChannel("tidemill-session");

/** The API refused, or did not answer (status 0). */
export class Fault extends Error {
  constructor(status, message, { code = null, param = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
  }
}

/** Whether the service did not answer, or could not: the same call may succeed later. @param {Fault|null|undefined} error */
export const isLost = (error) => Boolean(error) && (!error.status || error.status === 429 || error.status >= 500);

/**
 * Who is signed in: undefined until it is known, null for no one.
 * @type {import("@preact/signals").Signal<undefined|null|{role: string, project: string, projects: string[],
 *   key: object|null, person: string|null, limits: object}>}
 */
export const session = signal(undefined);
/** Why the user has to sign in again, or null. */
export const ended = signal(null);
/** Why it is not known who is signed in. @type {{value: null|Error}} */
export const unknown = signal(null);
/** The project of the address, if the page cannot show it, and the error if it may later. @type {{value: null|{project: string, error?: Fault}}} */
export const refused = signal(null);
/** The project to which another tab has gone last. @type {{value: null|{project: string}}} */
export const moved = signal(null);
const ROLES = ["read", "write", "admin", "operator"];
/** Whether the session has a role, or one above it. */
export const may = (role) => ROLES.indexOf(session.value?.role) >= ROLES.indexOf(role);
export const canWrite = () => may("write");
export const isOperator = () => may("operator");

const ask = async (method, path, options) => json(await send(method, SESSION + path, { ...options, isWhole: true }));
const askFor = (project) => ask("POST", "/project", { body: { project } });

/** Show what a session may see; `isTold` tells the other tabs that it has changed. */
async function enter(found, isTold) {
  if (isTold) tabs.postMessage(found.project);
  const limits = await call("GET", "/limits").catch(usual);
  // Resetting the session drops the data and dialogs of another one.
  if (session.value?.id !== found.id || session.value.project !== found.project) session.value = null;
  ended.value = null;
  session.value = { ...found, limits };
}

/** Go with a session to the project of the address, or say why not: no stored project overrides it. */
async function arrive(found, isTold) {
  const wanted = projectOf();
  const isOther = wanted !== null && wanted !== found.project;
  let fault = isOther && !found.projects.includes(wanted) ? { project: wanted } : null;
  let there = found;
  if (isOther && !fault)
    try {
      there = await askFor(wanted);
    } catch (error) {
      if (error.status === 401) throw error;
      fault = { project: wanted, error };
    }
  refused.value = fault;
  if (wanted === null) keepProject(there.project);
  await enter(there, isTold || there !== found);
}

let last = Promise.resolve();
/** Change the session after the changes before: Back may be pressed faster than the service answers. */
function inTurn(work) {
  last = last.catch(() => {}).then(work);
  return last;
}

/** The limits known before: the session has changed, even if the service fails to answer this request. */
function usual(error) {
  if (!session.value) throw error;
  return session.value.limits;
}

let again;
/** Resume the session of this browser, in the project of the address; if the service does not say, ask it again. */
export const resume = () => inTurn(async () => {
  clearTimeout(again);
  try {
    await arrive(await ask("GET", ""));
    unknown.value = null;
  } catch (error) {
    if (error.status === 401) [session.value, unknown.value] = [null, null];
    else {
      // The session may be in the project of the address already, and must not show it as the one before.
      if (session.value && projectOf() !== session.value.project) session.value = undefined;
      unknown.value = error;
      again = setTimeout(() => {
        if (document.visibilityState === "hidden") isStale = true;
        else resume();
      }, RESUME_MS);
    }
  }
});

/**
 * Exchange a key for a session; the page does not keep the key.
 * @throws {Fault} The key is wrong, or the service does not answer.
 */
export const signIn = (key) => inTurn(async () => arrive(await ask("POST", "", { headers: { authorization: `Bearer ${key}` } }), true));

/** Go to another project, to the page of `path` or to the same page; Back returns. */
export const switchProject = (project, path) => inTurn(async () => {
  const found = await askFor(project);
  refused.value = null;
  goToProject(project, path);
  await enter(found, true);
});

/** Sign out, in every tab, and at the OpenID provider, if the session came from there. */
export async function signOut() {
  const { end_url: next } = await json(await send("DELETE", SESSION, { isWhole: true }));
  session.value = null;
  keepProject(null);
  tabs.postMessage(null);
  if (next) location.assign(next);
}

/** The OpenID provider of the service, or null. @returns {Promise<{issuer: string}|null>} */
export const openid = async () => (await json(await send("GET", SIGN_IN, { isWhole: true }))).openid;

/** Where a sign-in at the OpenID provider begins; it comes back to the present place. */
export function openidAddress() {
  const to = location.hash.slice(1);
  const project = projectOf();
  return `${SIGN_IN}/openid?${new URLSearchParams({ to: to.length < PLACE_CHARS_MAX ? to : "", ...(project && { project }) })}`;
}

let isStale = false;
/**
 * The session has one project for all tabs. A tab in sight follows another one, and Back returns; one out of sight goes
 * to the project of its address once it comes into sight.
 */
tabs.onmessage = async ({ data: project }) => {
  if (document.visibilityState === "hidden") {
    isStale = true;
    if (session.value) session.value = undefined;
    return;
  }
  const isMoved = session.value && project && project !== projectOf();
  if (isMoved) goToProject(project);
  await resume();
  if (isMoved) moved.value = { project };
};
// Back may show a page as it was left.
addEventListener("pageshow", ({ persisted }) => persisted && resume());
document.addEventListener("visibilitychange", () => {
  if (!isStale || document.visibilityState === "hidden") return;
  isStale = false;
  resume();
});
addEventListener("popstate", () => {
  const project = projectOf();
  if (session.value === null || project === refused.value?.project) return;
  if (project === null) keepProject(session.value?.project ?? null);
  else if (project !== session.value?.project) {
    session.value = undefined;
    resume();
  }
});

/**
 * Make a call.
 * @param {string} method
 * @param {string} path Below `/v1`.
 * @param {{query?: object, body?: object, signal?: AbortSignal}} [options] Empty values of the query are left out;
 *   the body is sent as JSON.
 * @returns {Promise<any>} The JSON of the answer.
 * @throws {Fault}
 */
export async function call(method, path, options = {}) {
  return json(await send(method, path, options));
}

const intents = new Map();

/**
 * Make something: until it has succeeded, the same request has the same `Idempotency-Key`, so that a second try after a
 * lost answer makes nothing twice.
 */
export async function make(path, body) {
  const name = `${path} ${JSON.stringify(body)}`;
  // `randomUUID` exists with TLS only.
  const key = intents.get(name) ?? [...crypto.getRandomValues(new Uint32Array(4))].join("-");
  intents.set(name, key);
  const made = await call("POST", path, { body, headers: { "idempotency-key": key } });
  intents.delete(name);
  return made;
}

/** The bytes of a file; `range` is the first and the last byte. */
export async function content(fileId, { signal: stop, range } = {}) {
  const headers = range ? { range: `bytes=${range[0]}-${range[1]}` } : {};
  return send("GET", `/files/${encodeURIComponent(fileId)}/content`, { signal: stop, headers, isLong: true });
}

/** Where the browser downloads a file from. */
export const contentAddress = (fileId) => `${BASE}/files/${encodeURIComponent(fileId)}/content`;

/** Let the browser download a file under a name. */
export function save(fileId, name) {
  const link = document.createElement("a");
  link.href = contentAddress(fileId);
  link.download = name;
  link.click();
}

/**
 * Upload a file of lines.
 * @param {File} file
 * @param {(share: number) => void} onProgress How much is sent, 0 to 1.
 * @param {AbortSignal} stop Ends the upload; the promise is then neither kept nor broken.
 * @returns {Promise<any>} The file object.
 */
export function upload(file, onProgress, stop) {
  const form = new FormData();
  form.append("purpose", "batch");
  form.append("file", file);
  return new Promise((resolve, reject) => {
    // fetch does not report how much it has sent.
    const request = new XMLHttpRequest();
    request.open("POST", `${BASE}/files`);
    for (const [name, value] of Object.entries(OWN)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => onProgress(event.total ? event.loaded / event.total : 0);
    request.onerror = () => reject(new Fault(0, SILENT));
    request.onload = () => {
      if (request.status === 200) resolve(JSON.parse(request.responseText));
      else reject(faultOf(request.status, request.responseText));
    };
    stop.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

async function send(method, path, { query = {}, body, signal: stop, headers = {}, isWhole, isLong } = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const search = given.length ? `?${new URLSearchParams(given)}` : "";
  const limits = [stop, !isLong && AbortSignal.timeout(method === "GET" ? READ_MS_MAX : WRITE_MS_MAX)];
  const options = { method, headers: { ...OWN, ...headers }, signal: AbortSignal.any(limits.filter(Boolean)) };
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch((isWhole ? path : BASE + path) + search, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault(0, SILENT);
  }
  if (answer.ok) return answer;
  const fault = faultOf(answer.status, await answer.text().catch(() => ""));
  if (fault.status === 401 && session.value) {
    ended.value = "Your session has ended. Sign in again.";
    session.value = null;
  }
  throw fault;
}

/** The body of an answer, which may stop half-way. */
async function json(answer) {
  try {
    return await answer.json();
  } catch (error) {
    if (error.name === "AbortError" || error instanceof SyntaxError) throw error;
    throw new Fault(0, SILENT);
  }
}

function faultOf(status, text) {
  try {
    const { message, code, param } = JSON.parse(text).error;
    return new Fault(status, String(message), { code, param });
  } catch {
    return new Fault(status, `The service answered with status ${status}.`);
  }
}
