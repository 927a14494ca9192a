"""Fuzzes the decoders with Atheris: `make fuzz SECONDS=1200`, or `make fuzz TARGET=form` for one of them.

Each target runs in a process of its own, guided by coverage. Inputs that reach new code are kept in `corpus/`,
merged to the fewest; `tests/unit/test_fuzz.py` runs those in every test run. A finding has its input in `found/`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
CORPUS = FOLDER / "corpus"
INPUT_BYTES_MAX = 4096


def main() -> int:
    """Fuzz each target for so long; the exit code says whether something was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--target", default="")
    parser.add_argument("--one", action="store_true", help="run this target here; the rest is for libFuzzer")
    options, rest = parser.parse_known_args()
    if options.one:
        return fuzz(options.target, rest)
    from fuzz.targets import TARGETS  # noqa: PLC0415  a target's own process loads them instrumented

    names = [options.target] if options.target else list(TARGETS)
    return max(campaign(name, options.seconds) for name in names)


def campaign(name: str, seconds: int) -> int:
    """Fuzz a target, and keep what reached new code."""
    from fuzz.targets import seeds  # noqa: PLC0415  as above

    fresh, kept, found = (FOLDER / folder / name for folder in ("fresh", "corpus", "found"))
    for folder in (fresh, kept, found):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (fresh / f"seed-{number}").write_bytes(seed)
    command = [sys.executable, "-m", "fuzz", "--one", "--target", name]
    bounds = [f"-max_len={INPUT_BYTES_MAX}", f"-artifact_prefix={found}/", "-timeout=10", "-rss_limit_mb=2048"]
    ended = subprocess.run([*command, f"-max_total_time={seconds}", *bounds, str(fresh), str(kept)], check=False)
    merged = FOLDER / "merged" / name
    merged.mkdir(parents=True, exist_ok=True)
    subprocess.run([*command, "-merge=1", *bounds, str(merged), str(fresh), str(kept)], check=True)
    for path in kept.iterdir():
        path.unlink()
    for path in merged.iterdir():
        path.rename(kept / path.name)
    sys.stderr.write(f"{name}: {len(list(kept.iterdir()))} inputs kept, exit code {ended.returncode}\n")
    return ended.returncode


def fuzz(name: str, options: list[str]) -> int:
    """Run one target under libFuzzer; does not return."""
    import atheris  # noqa: PLC0415  only here is it installed

    with atheris.instrument_imports(include=["tidemill"]):
        from fuzz.targets import TARGETS  # noqa: PLC0415  this is what is instrumented
    # To merge, libFuzzer runs its own command again, through a shell.
    own = f"{sys.executable} -m fuzz --one --target {name}"
    atheris.Setup([own, *options], TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
