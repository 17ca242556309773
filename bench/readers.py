"""How fast a DTR operator log becomes a trace, and a trace file is loaded: by hand, on one core.

    python bench/readers.py [lines]                 (default: 48000, the longest log of the format's
                                                     authors)

The log is synthetic: convolution, norm, activation in place, with the copies and releases that a
real log has around them, and one backward operation for each layer. The time is that of finding the
format, reading, and compiling the facts; the best of five counts, in processor time.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from superneurons.traces import find_trace, read_trace, write_trace
from superneurons.traces.readers import read_foreign

REPEATS = 5
LINES_A_LAYER = 24


def main(lines: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chain.log"
        text = "".join(json.dumps(line) + "\n" for line in chain(lines // LINES_A_LAYER))
        path.write_text(text)
        best = min(timed(path) for _ in range(REPEATS))
        operations = len(read_foreign(path)[1].operations)
        saved = Path(folder) / "chain.json.gz"
        write_trace(find_trace("chain:ops=60000"), saved)
        load = min(loaded(saved) for _ in range(REPEATS))
    count = text.count("\n")
    print(f"{count} lines, {operations} operations: {best:.3f} s, {count / best:,.0f} lines/s")
    print(f"a trace file of 60000 operations: {load:.3f} s to load")


def loaded(path: Path) -> float:
    start = time.process_time()
    read_trace(path)
    return time.process_time() - start


def timed(path: Path) -> float:
    start = time.process_time()
    read_foreign(path)
    return time.process_time() - start


def chain(layers: int) -> Iterator[dict[str, object]]:
    yield {"INSTRUCTION": "ANNOTATE", "ANNOTATION": "START"}
    yield from constant("y0")
    for i in range(1, layers + 1):
        yield from constant(f"w{i}")
    for i in range(1, layers + 1):
        yield {"INSTRUCTION": "COPY", "SRC": f"w{i}", "DST": f"v{i}"}
        yield from call("cudnn_convolution", [f"y{i - 1}", f"v{i}"], [f"a{i}"])
        yield from call("cudnn_batch_norm", [f"a{i}"], [f"y{i}", f"s{i}", f"r{i}"])
        yield {
            "INSTRUCTION": "MUTATE",
            "NAME": "relu_",
            "ARGS": [f"y{i}"],
            "MUTATE": [0],
            "TIME": "1000",
        }
    yield {"INSTRUCTION": "ANNOTATE", "ANNOTATION": "BACKWARD"}
    for i in range(layers, 0, -1):
        args = [f"y{i}", f"a{i}", f"v{i}"] + ([f"g{i + 1}"] if i < layers else [])
        yield from call("cudnn_convolution_backward", args, [f"g{i}", f"d{i}"])
        for name in (f"y{i}", f"a{i}", f"s{i}", f"r{i}", *([f"g{i + 1}"] if i < layers else [])):
            yield {"INSTRUCTION": "RELEASE", "NAME": name}


def constant(name: str) -> Iterator[dict[str, object]]:
    yield {"INSTRUCTION": "CONSTANT", "NAME": name}
    yield {"INSTRUCTION": "MEMORY", "NAME": name, "MEMORY": "1048576"}


def call(name: str, args: list[str], results: list[str]) -> Iterator[dict[str, object]]:
    yield {"INSTRUCTION": "CALL", "NAME": name, "ARGS": args, "RESULT": results, "TIME": "1000"}
    for result in results:
        yield {"INSTRUCTION": "MEMORY", "NAME": result, "MEMORY": "1048576"}
        yield {"INSTRUCTION": "ALIAS", "NAME": result, "ALIAS": "-1"}


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 48_000)
