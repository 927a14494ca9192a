"""Answers of the api while it cannot serve a request: in OpenAI's shape, and never a 500."""

from collections import Counter

from openai import APIStatusError

FIELDS = {"message", "type", "param", "code"}
OWN_FAULT = 500


class Refusals:
    """Collects refusals and errors from the api during a run; thread-safe."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.told: list[str] = []

    def note(self, error: Exception) -> None:
        """Record the error of a client's call; a call without an answer is not the api's fault."""
        if not isinstance(error, APIStatusError):
            return
        self.counts[error.status_code] += 1
        is_shaped = isinstance(error.body, dict) and set(error.body) >= FIELDS
        if error.status_code == OWN_FAULT or not is_shaped:
            asked = f"{error.request.method} {error.request.url.path}"
            self.told.append(f"{asked} was answered with {error.status_code}: {str(error.body)[:200]}")

    def __str__(self) -> str:
        return ", ".join(f"{status} {count}" for status, count in sorted(self.counts.items())) or "none"
