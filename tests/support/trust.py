"""The signing key of the tests: one for a run, so that what one process signs another one trusts."""

from tidemill.schemas.log.signing import Signer, Verifier

SIGNER = Signer.made()
VERIFIER = Verifier([SIGNER.public])
ENVIRON = {"TIDEMILL_SIGNING_KEY": SIGNER.text, "TIDEMILL_VERIFY_KEYS": SIGNER.public}
"""Environment of the stages of a cluster."""
