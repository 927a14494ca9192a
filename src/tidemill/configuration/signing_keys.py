"""The signing keys of the settings: the api signs with a private key, readers verify with public ones."""

from tidemill import credentials
from tidemill.configuration.settings import Settings, SettingsError
from tidemill.credentials import SecretError
from tidemill.schemas.log.signing import KeyTextError, Signer, Verifier

KEPT = "signing_key"
"""The file of the data folder in which `tidemill up` keeps the signing key that it created."""
INIT = "`tidemill keys init` makes a pair"


def signer(settings: Settings) -> Signer:
    """The private key that the api signs with.

    Raises:
        SettingsError: No key is set, or the value is not a signing key.
    """
    name = "signing_key"
    try:
        if settings.signing_key:
            return Signer.read(settings.signing_key.get_secret_value())
        if settings.signing_key_file is not None:
            name = "signing_key_file"
            return Signer.read(credentials.of_file(settings.signing_key_file))
    except (KeyTextError, SecretError) as error:
        raise SettingsError(f"{name}: {error}") from None
    raise SettingsError(
        "signing_key: not set; the api signs keys with it (TIDEMILL_SIGNING_KEY or "
        f"TIDEMILL_SIGNING_KEY_FILE); {INIT}"
    )


def verifier(settings: Settings) -> Verifier:
    """The trusted public keys: those of the settings, and that of the signing key, if it is set.

    Raises:
        SettingsError: No key is set, or a value is not a public key.
    """
    publics = list(settings.verify_keys)
    if settings.signing_key or settings.signing_key_file:
        publics.insert(0, signer(settings).public)
    if not publics:
        raise SettingsError(
            f"verify_keys: not set; API keys are verified with the api's public key (TIDEMILL_VERIFY_KEYS); {INIT}"
        )
    try:
        return Verifier(publics)
    except KeyTextError as error:
        raise SettingsError(f"verify_keys: {error}") from None


def with_kept(settings: Settings) -> Settings:
    """The settings; if they have no signing key, with the one that `tidemill up` keeps in the data folder."""
    file = settings.data / KEPT
    if settings.signing_key or settings.signing_key_file or settings.verify_keys or not file.exists():
        return settings
    return settings.model_copy(update={"signing_key_file": file})
