"""What is read from a page of metrics."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.limits.server_metrics import ServerMetrics, read

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen3-8B"} 12.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen3-8B"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="Qwen/Qwen3-8B",reason="capacity"} 3.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen/Qwen3-8B"} 0.4375
vllm:prompt_tokens_total{engine="0",model_name="Qwen/Qwen3-8B"} 1.2e+06
"""
LLAMA = b"""# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 4
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 46
"""


def test_the_pages_of_servers() -> None:
    """That of vLLM as it is, as it was, with two engines, and llama.cpp's."""
    assert read(VLLM) == ServerMetrics(running=12, waiting=3, cache=0.4375)
    assert read(VLLM.replace(b"kv_cache", b"gpu_cache")) == ServerMetrics(running=12, waiting=3, cache=0.4375)
    second = VLLM.replace(b'engine="0"', b'engine="1"').replace(b"0.4375", b"0.5")
    assert read(VLLM + second) == ServerMetrics(running=24, waiting=6, cache=0.5)
    assert read(LLAMA) == ServerMetrics(running=4, waiting=46)


@pytest.mark.parametrize(
    "page",
    [b"", b"{}", b"<html>", b"te_queue_size 3\n", b"vllm:num_requests_running 3\n", VLLM.replace(b"3.0", b"NaN")],
)
def test_a_page_without_them_says_nothing(page: bytes) -> None:
    """Half of it is nothing, and so is what is no number."""
    assert read(page) is None


def label(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


numbers = st.one_of(st.integers(0, 10**6), st.floats(0, 1e9))
samples = st.lists(
    st.tuples(
        st.sampled_from(
            ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "x"]
        ),
        st.dictionaries(st.sampled_from(["engine", "model_name"]), st.text(max_size=8)),
        numbers,
        st.sampled_from(["", " 1700000000000"]),
    ),
    max_size=8,
)


@given(samples)
def test_labels_hold_anything(found: list[tuple[str, dict[str, str], float, str]]) -> None:
    """Braces, quotes, names of other metrics: the sums are those of what was written."""
    text = "# a page\n"
    for name, labels, number, time in found:
        inner = ",".join(f'{key}="{label(value)}"' for key, value in labels.items())
        text += f"{name}{'{' + inner + '}' if labels else ''} {number}{time}\n"

    def of(kind: str) -> list[float]:
        return [number for name, _, number, _ in found if name.endswith(kind)]

    gauges = read(text.encode())
    if not of("running") or not of("waiting"):
        assert gauges is None
        return
    assert gauges is not None
    assert math.isclose(gauges.running, sum(of("running")))
    assert math.isclose(gauges.waiting, sum(of("waiting")))
    assert gauges.cache == max(of("perc"), default=0.0)


@given(st.binary(max_size=200), st.integers(0, len(VLLM)))
def test_no_page_is_an_error(junk: bytes, at: int) -> None:
    """Whatever a server sends."""
    read(VLLM[:at] + junk + VLLM[at:])
    read(b"vllm:num_requests_running" + junk)
