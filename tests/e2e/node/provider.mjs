// A certified OpenID provider, with people, groups and two clients of the tests. What `POST /attack` names happens to
// the next ID token: the middleware signs changed claims with the provider's own key.

import { createServer } from "node:http";
import { exportJWK, generateKeyPair, SignJWT, decodeJwt, UnsecuredJWT } from "jose";
import Provider from "oidc-provider";

const [port, callback] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}`;
const PEOPLE = {
  ada: { email: "ada@example.com", email_verified: true, groups: ["writers", "readers"] },
  bob: { email: "bob@example.com", email_verified: false, groups: ["readers"] },
  olga: { email: "olga@example.com", email_verified: true, groups: "operators" },
  eve: { email: "eve@example.com", email_verified: true, groups: ["visitors"] },
};
const now = () => Math.floor(Date.now() / 1000);
const ATTACKS = {
  "wrong nonce": (claims) => ({ ...claims, nonce: "another" }),
  "no nonce": ({ nonce, ...claims }) => claims,
  "another client": (claims) => ({ ...claims, aud: "another" }),
  "another party": (claims) => ({ ...claims, aud: ["tidemill", "another"], azp: "another" }),
  "another issuer": (claims) => ({ ...claims, iss: "http://127.0.0.1:1" }),
  "another token": (claims) => ({ ...claims, at_hash: "AAAAAAAAAAAAAAAAAAAAAA" }),
  expired: (claims) => ({ ...claims, exp: now() - 120 }),
  future: (claims) => ({ ...claims, iat: now() + 120 }),
  "long sub": (claims) => ({ ...claims, sub: "x".repeat(256) }),
  "within skew": (claims) => ({ ...claims, exp: now() - 30, iat: now() + 30 }),
  unchanged: (claims) => claims,
};

let attack = null;
let made = 0;
let provider;
let key;

async function start() {
  const { privateKey } = await generateKeyPair("RS256", { extractable: true });
  key = { ...(await exportJWK(privateKey)), kid: `key-${(made += 1)}`, alg: "RS256", use: "sig" };
  key.private = privateKey;
  const { private: _, ...jwk } = key;
  provider = new Provider(issuer, {
    clients: [{
      client_id: "tidemill", client_secret: "secret of the tests", redirect_uris: [callback],
      post_logout_redirect_uris: [new URL("/dashboard/", callback).href],
    }],
    jwks: { keys: [jwk] },
    claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["groups"] },
    pkce: { required: () => true },
    findAccount: (_, id) => PEOPLE[id] && { accountId: id, claims: () => ({ sub: id, ...PEOPLE[id] }) },
    features: { rpInitiatedLogout: { enabled: true } },
    cookies: { keys: ["of the tests"] },
  });
  provider.use(async (ctx, next) => {
    await next();
    if (attack && ctx.path === "/token" && ctx.body?.id_token) ctx.body.id_token = await changed(ctx.body.id_token);
  });
  listener = provider.callback();
}

async function changed(token) {
  const claims = decodeJwt(token);
  const name = attack;
  attack = null;
  if (name === "alg none") return new UnsecuredJWT(claims).encode();
  if (name === "public key as secret") {
    const secret = new TextEncoder().encode(key.n);
    return new SignJWT(claims).setProtectedHeader({ alg: "HS256", kid: key.kid }).sign(secret);
  }
  if (name === "another key") {
    const { privateKey } = await generateKeyPair("RS256");
    return new SignJWT(claims).setProtectedHeader({ alg: "RS256", kid: key.kid }).sign(privateKey);
  }
  return new SignJWT(ATTACKS[name](claims)).setProtectedHeader({ alg: "RS256", kid: key.kid }).sign(key.private);
}

let listener;
await start();
const server = createServer(async (request, response) => {
  const url = new URL(request.url, issuer);
  if (url.pathname === "/attack") {
    attack = url.searchParams.get("name");
    if (attack === "new keys") await start().then(() => (attack = null));
    response.end();
  } else if (attack === "endless" && url.pathname === "/token") {
    attack = null;
    response.writeHead(200, { "content-type": "application/json" });
    response.write(`{"id_token": "`);
    const more = () => response.destroyed || (response.write("x".repeat(65536)), setTimeout(more, 1));
    more();
  } else if (attack === "silent" && url.pathname === "/token") {
    attack = null;
  } else if (attack === "redirect" && url.pathname === "/token") {
    attack = null;
    response.writeHead(307, { location: "/elsewhere" });
    response.end();
  } else listener(request, response);
});
server.listen(Number(port), "127.0.0.1", () => console.log("ready"));
