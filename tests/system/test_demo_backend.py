"""The demo backend with its real models, through the official SDK."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import openai
import psutil
import pytest
from openai import OpenAI
from support.real_servers import demo_process
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.local import demo

pytestmark = pytest.mark.skipif(not demo.is_installed(), reason="the demo's packages are not installed")


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """The backend, and its address."""
    with demo_process(tmp_path_factory.mktemp("demo") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def client(process: tuple["subprocess.Popen[bytes]", str]) -> Iterator[OpenAI]:
    """The official SDK."""
    with OpenAI(base_url=process[1], api_key="any", max_retries=0) as client:
        yield client


def connections(pid: int, port: int) -> int:
    """How many callers a process has on a port."""
    found = psutil.Process(pid).net_connections()
    return sum(one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED for one in found)


def test_it_lists_its_models(client: OpenAI) -> None:
    """By the names that the configuration has."""
    assert {model.id for model in client.models.list()} == set(demo.models("http://x/v1"))


def test_chat(client: OpenAI) -> None:
    """An answer of words, with its usage; greedy decoding says the same twice."""
    messages = [{"role": "user", "content": "Say hello."}]
    answers = [
        client.chat.completions.create(
            model=demo.CHAT_MODEL, messages=messages, max_completion_tokens=8, temperature=0
        )
        for _ in range(2)
    ]
    assert answers[0].choices[0].message.content
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    usage = answers[0].usage
    assert usage.completion_tokens <= 8
    assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens


def test_chat_streams(client: OpenAI) -> None:
    """Pieces come as they are made."""
    messages = [{"role": "user", "content": "Count to five."}]
    stream = client.chat.completions.create(
        model=demo.CHAT_MODEL, messages=messages, max_completion_tokens=8, stream=True
    )
    assert len(list(stream)) > 2


def test_completions_and_responses(client: OpenAI) -> None:
    """The other two ways to ask for text, a response from a text and from messages."""
    completion = client.completions.create(model=demo.CHAT_MODEL, prompt="Water is", max_tokens=4)
    assert completion.choices[0].text
    for asked in ("Say hello.", [{"role": "user", "content": [{"type": "input_text", "text": "Say hello."}]}]):
        response = client.responses.create(model=demo.CHAT_MODEL, input=asked, max_output_tokens=4)
        assert response.output_text
        assert response.usage.output_tokens <= 4
        assert response.usage.input_tokens > 0


def test_embeddings_mean_something(client: OpenAI) -> None:
    """The SDK asks for base64; similar texts have near vectors, and usage does not count padding."""
    texts = ["the ship sails on the sea", "a boat crosses the ocean", "invoices are due in thirty days"]
    answer = client.embeddings.create(model=demo.EMBEDDING_MODEL, input=texts)
    boat, ship, bill = (item.embedding for item in answer.data)
    assert len(boat) == demo.DIMENSIONS
    assert sum(map(lambda a, b: a * b, boat, ship)) > sum(map(lambda a, b: a * b, boat, bill)) + 0.1
    alone = client.embeddings.create(model=demo.EMBEDDING_MODEL, input=texts[0], encoding_format="float")
    assert alone.data[0].embedding == pytest.approx(boat, abs=1e-5)
    each = [client.embeddings.create(model=demo.EMBEDDING_MODEL, input=text).usage.total_tokens for text in texts]
    assert answer.usage.total_tokens == sum(each)


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    """Also one that is known, at an endpoint that is not its own."""
    messages = [{"role": "user", "content": "x"}]
    for model in ("gpt-none", demo.EMBEDDING_MODEL):
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model=model, messages=messages)
        assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=demo.CHAT_MODEL, input="x")


def test_bad_requests_are_told_as_such(client: OpenAI) -> None:
    """400 with a message, from the door and from the engine behind it."""
    with pytest.raises(openai.BadRequestError, match="input"):
        client.embeddings.create(model=demo.EMBEDDING_MODEL, input="")
    messages = [{"role": "user", "content": "word " * 3 * demo.CHAT_TOKENS_MAX}]
    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(model=demo.CHAT_MODEL, messages=messages)


def test_a_stop_does_not_wait_for_a_long_answer(process: tuple["subprocess.Popen[bytes]", str]) -> None:
    """SIGTERM ends the process soon, with exit code 0, whatever is being written."""
    running, url = process
    body = '{"model":"%s","messages":[{"role":"user","content":"x"}],"max_tokens":1900,"ignore_eos":true}'
    caller = "import sys, urllib.request as u; u.urlopen(u.Request(sys.argv[1], sys.argv[2].encode())).read()"
    command = [sys.executable, "-c", caller, f"{url}/chat/completions", body % demo.CHAT_MODEL]
    port = int(url.split(":")[2].split("/")[0])
    before = connections(running.pid, port)
    asking = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until(lambda: connections(running.pid, port) > before, what="the call")
    running.send_signal(signal.SIGTERM)
    assert running.wait(WAIT_SECONDS_MAX) == 0
    assert asking.wait(WAIT_SECONDS_MAX) != 0
