"""How a server reads forms, and its replies on endpoints that few servers have."""

import hashlib
from typing import Any

from aiohttp import web
from aiohttp.web_request import FileField

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
"""An image, in base64."""
IMAGE_USAGE = {
    "input_tokens": 50,
    "output_tokens": 200,
    "total_tokens": 250,
    "input_tokens_details": {"image_tokens": 40, "text_tokens": 10},
}


async def form(request: web.Request) -> dict[str, Any]:
    """A form as JSON: of a field its text, of a file its name, type and digest; a list if a name comes twice."""
    found: dict[str, list[Any]] = {}
    for name, value in (await request.post()).items():
        shown: Any = value
        if isinstance(value, FileField):
            digest = hashlib.sha256(value.file.read()).hexdigest()
            shown = {"filename": value.filename, "type": value.content_type, "sha256": digest}
        found.setdefault(name, []).append(shown)
    return {name: values if name.endswith("[]") else values[0] for name, values in found.items()}


VERDICT = {"flagged": False, "categories": {}, "category_scores": {}, "category_applied_input_types": {}}
JOB = {"id": "video-1", "object": "video", "model": "m", "status": "queued", "created_at": 1, "progress": 0}
COUNTS = {"prompt_tokens": 5, "total_tokens": 5}
HEARD = {"type": "tokens", "input_tokens": 14, "output_tokens": 3, "total_tokens": 17}
REPLIES: dict[str, dict[str, Any]] = {
    "/v1/moderations": {"id": "modr-1", "model": "m", "results": [VERDICT]},
    "/v1/videos": {**JOB, "seconds": "4", "size": "720x1280"},
    "/v1/audio/transcriptions": {"text": "tide", "usage": HEARD},
    "/v1/audio/translations": {"text": "tide", "usage": {"type": "duration", "seconds": 90}},
    "/v1/mine": {"verdicts": [{"flagged": False}], "meta": {"tokens": {"input_tokens": 7, "output_tokens": 1}}},
    "/v1/rerank": {"results": [{"index": 0, "relevance_score": 0.5}], "usage": COUNTS},
    "/v1/score": {"data": [{"index": 0, "object": "score", "score": 0.5}], "usage": COUNTS},
    "/classify": {"data": [{"index": 0, "label": "a", "probs": [1.0]}], "usage": COUNTS},
    "/pooling": {"data": [{"index": 0, "data": [0.5]}], "usage": COUNTS},
}


def reply(path: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """The reply, if the path is one of these."""
    if path.startswith("/v1/images/"):
        images = [{"b64_json": PIXEL} for _ in range(int(body.get("n", 1)))]
        return {"created": 1, "data": images, "usage": IMAGE_USAGE}
    return REPLIES.get(path)
