"""How long the command line takes from its start to its first output: run by hand.

python bench/start.py
"""

import subprocess
import sys
import time
from statistics import median

COMMANDS = ("simulate alexnet:batch=200 --machine k40c", "traces")
REPEATS = 7


def main() -> None:
    for command in COMMANDS:
        seconds = sorted(first_output(command) for _ in range(REPEATS))
        print(f"superneurons {command}: median {median(seconds):.3f} s, worst {seconds[-1]:.3f} s")


def first_output(command: str) -> float:
    """Return the seconds until the first byte of output, a fresh process each time."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "superneurons", *command.split()], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.communicate()
    return seconds


if __name__ == "__main__":
    main()
