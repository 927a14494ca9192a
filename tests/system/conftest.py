"""An api as a process of its own, for the modules that look at it from outside."""

import asyncio

import openai
import pytest
from support.api import KEY, Api
from support.api_use import MODELS, UPLOAD_BYTES_MAX

from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import ensure_topics


@pytest.fixture(scope="module")
def api(kafka, tmp_path_factory):
    """One api process for all tests of a module."""
    asyncio.run(ensure_topics(Settings(), kafka))
    folder = tmp_path_factory.mktemp("api")
    settings = {"models": MODELS, "upload_bytes_max": UPLOAD_BYTES_MAX, "windows": {"24h": 0.5, "1h": 0.5}}
    with Api(folder, kafka, path_aliases=True, **settings) as api:
        yield api


@pytest.fixture(scope="module")
def sdk(api):
    """The official client."""
    with openai.OpenAI(base_url=api.url, api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def plain(api):
    """A plain client."""
    with api.client() as client:
        yield client
