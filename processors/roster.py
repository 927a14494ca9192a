"""The backends of a model as the settings name them."""

from tidemill.processors import hours
from tidemill.processors.fleet import Backend, Fleet
from tidemill.processors.limit import Limit
from tidemill.settings import Model


def fleet(model: Model) -> Fleet:
    """A model's backends, each with a limit of its own; none may have more calls than the model."""
    return Fleet(
        [
            Backend(
                backend.base,
                Limit(model.max_in_flight, share=backend.share),
                _headers(backend.api_key),
                ceiling=hours.ceiling(backend.hours),
                drain=backend.drain,
            )
            for backend in model.backends
        ]
    )


def _headers(key: str | None) -> dict[str, str]:
    headers = {"content-type": "application/json", "accept": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    return headers
