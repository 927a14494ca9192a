"""The models, as Anthropic's clients see them."""

from support.dependencies import client_of, open_dependencies

from tidemill.configuration.settings import Settings


async def test_models_have_anthropics_shape(tmp_path):
    """Those with the endpoint, for requests with the header of its clients."""
    backends = [{"url": "http://127.0.0.1:9/v1"}]
    models = {"m": {"backends": backends, "endpoints": ["/v1/messages"]}, "n": {"backends": backends}}
    headers = {"x-api-key": "key-of-p", "anthropic-version": "2023-06-01"}
    async with (
        open_dependencies(tmp_path, settings=Settings(models=models)) as deps,
        client_of(deps, None, **headers) as client,
    ):
        found = (await client.get("/models")).json()
        assert ([each["id"] for each in found["data"]], found["has_more"]) == (["m"], False)
        assert (await client.get("/models/m")).json() == found["data"][0]
        assert found["data"][0]["type"] == "model"
