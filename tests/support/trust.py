"""The signing key of the tests: one per run, so that all processes trust each other's signatures."""

from tidemill.schemas.log.signing import Signer, Verifier

SIGNER = Signer.made()
VERIFIER = Verifier([SIGNER.public])
ENVIRON = {"TIDEMILL_SIGNING_KEY": SIGNER.text, "TIDEMILL_VERIFY_KEYS": SIGNER.public}
"""Environment of the stages of a cluster."""
