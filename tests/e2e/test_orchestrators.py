"""Each recipe of docs/how-to/orchestrate.md runs in the real orchestrator, against a whole service."""

import json
import os
import re
import subprocess
import textwrap
from pathlib import Path

import pytest
from support.orchestrators import python_with_orchestrators
from support.stack import KEY
from support.waiting import WAIT_SECONDS_MAX

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "orchestrate.md"
BLOCK = re.compile(r"```python\n# (\S+)\n(.*?)```", re.DOTALL)
LINES = 5

AIRFLOW = """
    import asyncio, sys
    from importlib import import_module
    from types import SimpleNamespace
    from airflow.sdk.exceptions import TaskDeferred
    sys.path.append("dags")
    from embed import work
    from tidemill_sensor import TidemillBatchSensor

    def run(task, context):
        # As a worker, a triggerer and again a worker do it, each in its process.
        task.render_template_fields(context)
        try:
            task.execute(context)
        except TaskDeferred as deferred:
            path, arguments = deferred.trigger.serialize()
            module, _, name = path.rpartition(".")
            async def first():
                return await anext(getattr(import_module(module), name)(**arguments).run())
            return getattr(task, deferred.method_name)(context, asyncio.run(first()).payload)

    def context(run_id):
        return {"ti": SimpleNamespace(dag_id="embed", run_id=run_id, task_id="embed", map_index=-1)}

    embed = work.get_task("embed")
    found = run(embed, context("first"))
    assert found == run(embed, context("first"))
    assert found != run(embed, context("second"))
    assert run(TidemillBatchSensor(task_id="wait", batch_id="{{ made }}"), {"made": found}) == found
"""
DAGSTER = """
    from dagster import materialize
    from dagster_batches import TidemillResource, embedded
    found = materialize([embedded], resources={"tidemill": TidemillResource()})
    (made,) = found.asset_materializations_for_node("embedded")
    assert made.metadata["lines"].value == 5
"""
PREFECT = """
    from prefect_batches import embed
    assert embed() == 5
"""
LANGCHAIN = """
    from langchain_core.vectorstores import InMemoryVectorStore
    from langchain_batches import TidemillEmbeddings
    store = InMemoryVectorStore.from_texts(["one", "two", "three"], TidemillEmbeddings("embed"))
    assert len(store.similarity_search("two", k=2)) == 2
    open("out.jsonl", "w").write("\\n" * 5)
"""
LLAMA_INDEX = """
    import asyncio
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode
    from llama_index_batches import TidemillEmbedding
    model = TidemillEmbedding(model_name="embed", embed_batch_size=1000)
    index = VectorStoreIndex([TextNode(text=f"text {n}") for n in range(5)], embed_model=model)
    assert len(index.as_retriever(similarity_top_k=3).retrieve("text 2")) == 3
    assert len(asyncio.run(model.aget_text_embedding_batch(["a", "b"]))) == 2
    open("out.jsonl", "w").write("\\n" * 5)
"""
SCRIPTS = {
    "airflow": AIRFLOW,
    "dagster": DAGSTER,
    "prefect": PREFECT,
    "langchain": LANGCHAIN,
    "llama-index": LLAMA_INDEX,
}


@pytest.fixture(scope="module")
def python():
    return python_with_orchestrators()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_recipe_runs(name, python, stack, backend, tmp_path):
    """With the page's code, word for word."""
    del backend
    for path, code in BLOCK.findall(PAGE.read_text("utf-8")):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(code, "utf-8")
    requests = (
        {
            "custom_id": f"r{n}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "embed", "input": f"{name} {n}"},
        }
        for n in range(LINES)
    )
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in requests), "utf-8")
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "src")]),
        "TIDEMILL_BASE_URL": stack.api,
        "TIDEMILL_API_KEY": KEY,
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "DO_NOT_TRACK": "1",
    }
    done = subprocess.run(
        [python, "-c", textwrap.dedent(SCRIPTS[name])],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert (tmp_path / "out.jsonl").read_text("utf-8").count("\n") == LINES
