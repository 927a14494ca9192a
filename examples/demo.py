# ruff: noqa: INP001, S603, T201 - a script with output

"""`make demo`: starts Tidemill, runs the examples on two small real models, shows the results, and stops it.

It uses the commands that a user types: `tidemill up` with the data folder `.tidemill/demo`, and `tidemill run`.
The results stay in that folder.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / ".tidemill" / "demo"
RESULTS = DATA / "results"
READY_SECONDS_MAX = 170
"""The first start downloads Kafka; later ones take seconds."""
STOP_SECONDS_MAX = 60
RUN_SECONDS_MAX = 170
KEPT = ("TIDEMILL_CACHE", "TIDEMILL_MAVEN")
"""Variables that the demo passes on; others belong to another installation."""
SHOWN = 5
CHARS_SHOWN = 76


def tidemill(*words: str) -> list[str]:
    """The command line of Tidemill in this environment."""
    return [sys.executable, "-m", "tidemill", *words]


def environ() -> dict[str, str]:
    """The environment without the settings of another installation."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_") or name in KEPT}


@contextlib.contextmanager
def up() -> Iterator[None]:
    """Run Tidemill; it is ready inside the block and stopped after it.

    Raises:
        SystemExit: It did not start.
    """
    # Only this user may read the data folder.
    os.umask(0o077)
    RESULTS.mkdir(parents=True, exist_ok=True)
    # Empty settings: without a model the demo models start, whatever the current folder configures.
    config = DATA / "tidemill.toml"
    config.write_text("", "utf-8")
    command = tidemill("up", "--port", "0", "--data", str(DATA), "--config", str(config))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ())
    ready = threading.Event()
    reader = threading.Thread(target=echo, args=(process, ready), daemon=True)
    reader.start()
    try:
        if not ready.wait(READY_SECONDS_MAX) or process.poll() is not None:
            raise SystemExit("demo: `tidemill up` did not become ready")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS_MAX)
        process.kill()
        print(f"Tidemill has stopped (exit code {process.wait()}).")


def echo(process: "subprocess.Popen[str]", ready: threading.Event) -> None:
    """Print the output of Tidemill, and notice when it is ready or has ended."""
    for line in process.stdout or ():
        print(line, end="", flush=True)
        if "Tidemill is ready at" in line:
            ready.set()
    ready.set()


def run(name: str) -> int:
    """Run an example as a batch; returns the exit code."""
    output = RESULTS / f"{name}.jsonl"
    receipt = RESULTS / f"{name}.receipt.json"
    words = ("run", f"examples/{name}.jsonl", "-o", str(output), "--receipt", str(receipt), "--data", str(DATA))
    words += ("--force",)
    print(f"\n$ tidemill {' '.join(word.replace(f'{ROOT}/', '') for word in words)}", flush=True)
    return subprocess.run(
        tidemill(*words), cwd=ROOT, env=environ(), timeout=RUN_SECONDS_MAX, check=False
    ).returncode


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def likeness(one: list[float], other: list[float]) -> float:
    """Similarity of two texts: the cosine, since the vectors have length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def show_neighbours() -> None:
    """Print the nearest neighbour of a few texts, by their embeddings."""
    vectors = {
        line["custom_id"]: line["response"]["body"]["data"][0]["embedding"]
        for line in lines(RESULTS / "embed-docs.jsonl")
    }
    print("\nNearest neighbours by embedding:")
    for name in list(vectors)[:: max(1, len(vectors) // SHOWN)][:SHOWN]:
        others = (other for other in vectors if other != name)
        nearest = max(others, key=lambda other: likeness(vectors[name], vectors[other]))
        print(f"  {name}  ~  {nearest}")


def show_answers() -> None:
    """Print answers of the chat model to a few texts."""
    questions = {line["custom_id"]: line["body"] for line in lines(ROOT / "examples" / "classify-docs.jsonl")}
    print("\nTopics by the chat model (135 million parameters, so expect mistakes):")
    for line in lines(RESULTS / "classify-docs.jsonl")[:SHOWN]:
        text = questions[line["custom_id"]]["messages"][-1]["content"].split("\n")[0].removeprefix("Text: ")
        answer = line["response"]["body"]["choices"][0]["message"]["content"]
        print(f"  {text[:CHARS_SHOWN]}…  →  {json.loads(answer)}")


def show_files() -> None:
    """Print the paths of results and receipts."""
    print("\nResults and receipts:")
    for path in sorted(RESULTS.iterdir()):
        print(f"  {path.relative_to(ROOT)}  {path.stat().st_size:,} bytes")


def main() -> int:
    """Run both examples; returns the first exit code that is not 0."""
    # SIGTERM raises an exception, as Ctrl-C does, so that nothing is left running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with up():
        codes = [run("embed-docs"), run("classify-docs")]
        if any(codes):
            return next(code for code in codes if code)
    show_neighbours()
    show_answers()
    show_files()
    return 0


if __name__ == "__main__":
    sys.exit(main())
