/** The page of those who are not signed in. */

import { ended, openid, openidAddress, signIn } from "./core/client.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "./core/view.js";
import { Banner, Skeleton } from "./ui/basics.js";
import { Icon } from "./ui/icons.js";
import { useTitle } from "./ui/page.js";

/** Why a sign-in with OpenID Connect was refused, by the codes of api/access/openid.py. */
const REFUSALS = {
  provider_unavailable: "The identity provider does not answer. Try again, or sign in with a key.",
  denied: "The identity provider did not sign you in.",
  not_begun: "The sign-in took too long, or another one was begun in this browser. Try again.",
  invalid_answer: "The answer of the identity provider is not valid. Tell your operator.",
  no_access: "Your account has no access yet. Ask your operator for a group that has.",
  too_many: "Too many sign-ins failed from your address. Wait a minute.",
};

/** The refusal in the address, removed from there so that a reload does not repeat it. */
function refusal() {
  const given = new URLSearchParams(location.search);
  const code = given.get("refused");
  if (code === null) return null;
  const project = given.get("project");
  history.replaceState(null, "", `${location.pathname}${project ? `?${new URLSearchParams({ project })}` : ""}${location.hash}`);
  const words = Object.hasOwn(REFUSALS, code) ? REFUSALS[code] : "The sign-in was refused.";
  const id = given.get("request");
  return { words, id: /^[\w-]{1,64}$/.test(id) ? id : null };
}

const refused = refusal();

export function SignIn() {
  const [provider, setProvider] = useState(undefined);
  useTitle("Sign in");
  useEffect(() => {
    openid().then(setProvider, () => setProvider(null));
  }, []);
  // A form shown before it is known would jump.
  return provider === undefined ? html`<${Skeleton} rows=${6} height=${32} />` : html`<${Form} provider=${provider} />`;
}

function Form({ provider }) {
  const first = useRef(null);
  const input = useRef(null);
  const [fault, setFault] = useState(ended.value && { message: ended.value });
  const [isBusy, setBusy] = useState(false);
  useLayoutEffect(() => (first.current ?? input.current).focus(), []);
  async function submit(event) {
    event.preventDefault();
    setBusy(true);
    try {
      await signIn(input.current.value.trim());
    } catch (error) {
      setFault(error);
      setBusy(false);
      input.current.focus();
    }
  }
  return html`
    <main class="sign-in">
      <form class="card" onSubmit=${submit}>
        <p class="brand"><img src="icon.svg" alt="" width="28" height="28" />Tidemill</p>
        <h1>Sign in</h1>
        ${refused && html`<${Banner} tone="bad">${refused.words}${refused.id && html`<br /><small>Request <code>${refused.id}</code></small>`}<//>`}
        ${provider && html`
          <a class="button primary" ref=${first} href=${openidAddress()}>Sign in with ${new URL(provider.issuer).hostname}</a>
          <p class="or">or with a key</p>
        `}
        <div class="field">
          <label for="key">API key</label>
          <input id="key" ref=${input} type="password" autocomplete="current-password" required placeholder="sk-…"
            aria-invalid=${fault ? "true" : undefined} aria-describedby=${fault ? "key-fault key-help" : "key-help"} />
          ${fault && html`<p class="fault" id="key-fault" role="alert" key=${fault}><${Icon} name="alert" /> ${fault.message}</p>`}
          <p class="help" id="key-help">
            The dashboard can do what the key can do, and does not keep it. <code>tidemill up</code> has one
            ${" in "}<code>.tidemill/api_key</code>.
          </p>
        </div>
        <button class=${provider ? "button" : "button primary"} aria-busy=${isBusy} disabled=${isBusy}>Sign in</button>
      </form>
    </main>
  `;
}
