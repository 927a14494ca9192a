"""The OpenID provider of the settings: Authlib and joserfc make the requests to it, and check its ID token.

The api imports this module only if a provider is set. Each request is bounded in time and size, and goes to that
provider alone. The api fetches the provider's keys at each sign-in, so that new keys work at once.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
import orjson
from authlib.common.urls import add_params_to_uri
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, import_key
from pydantic import ValidationError

from tidemill import credentials
from tidemill.api.access.openid import SUB_CHARS_MAX, Identity, Metadata, Reason, Refused, Secrets
from tidemill.configuration.projects import OpenId
from tidemill.credentials import SecretError
from tidemill.http.bounded_connector import BoundedConnector
from tidemill.schemas.ports import Clock

REQUEST_SECONDS_MAX: Final = 5.0
"""How long the provider may take for one answer."""
REPLY_BYTES_MAX: Final = 256 << 10
RECEIVED_MAX: Final = (64 << 10) + REPLY_BYTES_MAX
"""Bytes of one answer with its heads."""
METADATA_SECONDS: Final = 300
"""Age at which the provider's configuration is read again."""
SKEW_SECONDS: Final = 60
"""How far the provider's clock may be off."""
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signature algorithms with a private key, which only the provider has."""
AUTH_METHODS: Final = ("client_secret_basic", "client_secret_post")
KEYS_MAX: Final = 100
OK: Final = 200

_log = logging.getLogger(__name__)


class Provider:
    """The OpenID provider of the settings."""

    def __init__(self, settings: OpenId, clock: Clock) -> None:
        self.settings = settings
        self._clock = clock
        self._metadata: tuple[float, Metadata] | None = None

    async def metadata(self) -> Metadata:
        """The provider's configuration.

        Raises:
            Refused: The provider does not answer, or is another one.
        """
        now = self._clock()
        if self._metadata is None or not 0 <= now - self._metadata[0] < METADATA_SECONDS:
            found = await _fetch("GET", f"{self.settings.issuer.rstrip('/')}/.well-known/openid-configuration")
            try:
                metadata = Metadata.model_validate(found)
            except ValidationError as error:
                fields = ", ".join(str(fault["loc"][0]) for fault in error.errors())
                raise Refused(Reason.UNAVAILABLE, f"the provider's configuration is not valid: {fields}") from None
            if metadata.issuer != self.settings.issuer:
                raise Refused(Reason.UNAVAILABLE, f"the provider is {metadata.issuer[:200]}, not the set issuer")
            self._metadata = (now, metadata)
        return self._metadata[1]

    async def address(self, known: Secrets, redirect_uri: str) -> str:
        """Where the browser goes to sign in.

        Raises:
            Refused: See `metadata`.
        """
        found = prepare_grant_uri(
            (await self.metadata()).authorization_endpoint,
            self.settings.client_id,
            "code",
            redirect_uri,
            " ".join(self.settings.scopes),
            known.state,
            nonce=known.nonce,
            code_challenge=create_s256_code_challenge(known.verifier),
            code_challenge_method="S256",
        )
        return str(found)

    async def end_address(self, after: str) -> str | None:
        """Where the browser goes to sign out at the provider, too, and then to `after`; None if it offers none."""
        try:
            endpoint = (await self.metadata()).end_session_endpoint
        except Refused as error:
            _log.warning("no sign-out at the OpenID provider: %s", error)
            return None
        if endpoint is None:
            return None
        given = [("client_id", self.settings.client_id), ("post_logout_redirect_uri", after)]
        return str(add_params_to_uri(endpoint, given))

    async def identity(self, code: str, known: Secrets, redirect_uri: str) -> Identity:
        """The person for whom the provider has issued a code.

        Raises:
            Refused: The provider does not answer, refuses the code, or its answer is not valid.
        """
        metadata = await self.metadata()
        tokens = await self._tokens(metadata, code, known, redirect_uri)
        claims = await self._claims(metadata, tokens, known.nonce)
        sub, access_token = claims["sub"], tokens.get("access_token")
        if not isinstance(sub, str) or not 0 < len(sub) <= SUB_CHARS_MAX:
            raise Refused(Reason.INVALID, "the ID token's sub is empty or too long")
        email = _verified_email(claims)
        is_whole = {self.settings.claim, "email"} <= claims.keys()
        if not is_whole and metadata.userinfo_endpoint and isinstance(access_token, str):
            headers = {"authorization": f"Bearer {access_token}"}
            more = await _fetch("GET", metadata.userinfo_endpoint, headers=headers)
            if more.get("sub") != sub:
                raise Refused(Reason.INVALID, "the userinfo is another person's")
            email = _verified_email(claims if "email" in claims else more)
            claims = {**more, **claims}
        values = email if self.settings.claim == "email" else claims.get(self.settings.claim)
        return Identity(
            sub=sub,
            email=email,
            values=frozenset(
                one for one in (values if isinstance(values, list) else [values]) if isinstance(one, str)
            ),
        )

    async def _tokens(self, metadata: Metadata, code: str, known: Secrets, redirect_uri: str) -> dict[str, Any]:
        body = prepare_token_request(
            "authorization_code", redirect_uri=redirect_uri, code=code, code_verifier=known.verifier
        )
        secret, method = await self._secret(), "none"
        if secret is not None:
            offered = metadata.token_endpoint_auth_methods_supported
            method = next((one for one in AUTH_METHODS if one in offered), AUTH_METHODS[0])
        headers = {"content-type": "application/x-www-form-urlencoded"}
        url, headers, body = ClientAuth(self.settings.client_id, secret, method).prepare(
            "POST", metadata.token_endpoint, headers, body
        )
        return await _fetch("POST", url, headers=headers, data=body)

    async def _secret(self) -> str | None:
        """The client's secret, read anew, so that a replaced file counts at once."""
        if (path := self.settings.client_secret_file) is None:
            return None
        try:
            return await asyncio.to_thread(credentials.of_file, path)
        except SecretError as error:
            raise Refused(Reason.UNAVAILABLE, f"client_secret_file: {error}") from error

    async def _claims(self, metadata: Metadata, tokens: dict[str, Any], nonce: str) -> dict[str, Any]:
        """The claims of the ID token, after each check of OpenID Connect Core 1.0, section 3.1.3.7."""
        id_token = tokens.get("id_token")
        if not isinstance(id_token, str):
            raise Refused(Reason.INVALID, "there is no ID token")
        keys = _keys(await _fetch("GET", metadata.jwks_uri))
        allowed = [one for one in metadata.id_token_signing_alg_values_supported if one in ALGORITHMS]
        client_id = self.settings.client_id
        try:
            token = jwt.decode(id_token, keys, algorithms=allowed)
            claims = CodeIDToken(
                token.claims,
                token.header,
                options={
                    "iss": {"essential": True, "value": metadata.issuer},
                    "aud": {"essential": True, "value": client_id},
                },
                params={"nonce": nonce, "client_id": client_id, "access_token": tokens.get("access_token")},
            )
            claims.validate(now=int(self._clock()), leeway=SKEW_SECONDS)
        except (JoseError, ValueError, TypeError) as error:
            raise Refused(Reason.INVALID, f"the ID token is not valid: {error!s:.200}") from error
        return dict(claims)


def _verified_email(claims: Mapping[str, Any]) -> str | None:
    """The address of an ID token or of the userinfo, if the provider has verified it."""
    email = claims.get("email")
    is_good = isinstance(email, str) and 0 < len(email) <= SUB_CHARS_MAX
    return email if is_good and claims.get("email_verified") is True else None


def _keys(found: dict[str, Any]) -> KeySet:
    """The keys of the provider, without those of a type that the library does not support."""
    keys = []
    listed = found.get("keys")
    for one in listed[:KEYS_MAX] if isinstance(listed, list) else []:
        try:
            keys.append(import_key(one))
        except (JoseError, ValueError, TypeError, KeyError):
            continue
    if not keys:
        raise Refused(Reason.UNAVAILABLE, "the provider has no usable keys")
    return KeySet(keys)


async def _fetch(
    method: str, url: str, *, headers: dict[str, str] | None = None, data: str | None = None
) -> dict[str, Any]:
    """Make a request, follow no redirect, and read a JSON object.

    Raises:
        Refused: There is no such answer.
    """
    place = url.partition("?")[0][:200]
    try:
        async with (
            asyncio.timeout(REQUEST_SECONDS_MAX),
            aiohttp.ClientSession(
                connector=BoundedConnector(RECEIVED_MAX),
                cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False,
                headers={"accept": "application/json", "accept-encoding": "identity"},
            ) as session,
            session.request(method, url, headers=headers, data=data, allow_redirects=False) as reply,
        ):  # fmt: skip
            body = await _body(reply, place)
    except TimeoutError:
        raise Refused(Reason.UNAVAILABLE, f"{place} does not answer within {REQUEST_SECONDS_MAX:.0f} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Refused(Reason.UNAVAILABLE, f"{place} does not answer: {type(error).__name__}") from error
    try:
        found = orjson.loads(body)
    except ValueError:
        found = None
    if reply.status == OK and isinstance(found, dict):
        return found
    code = found.get("error") if isinstance(found, dict) else None
    said = f" ({code:.60})" if isinstance(code, str) else ""
    reason = Reason.INVALID if code == "invalid_grant" else Reason.UNAVAILABLE
    raise Refused(reason, f"{place} answers with status {reply.status}{said}")


async def _body(reply: aiohttp.ClientResponse, place: str) -> bytes:
    body = bytearray()
    async for chunk in reply.content.iter_any():
        body += chunk
        if len(body) > REPLY_BYTES_MAX:
            raise Refused(Reason.UNAVAILABLE, f"{place} answers with more than {REPLY_BYTES_MAX} bytes")
    return bytes(body)
