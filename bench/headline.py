"""How long the paper's headline takes: run by hand, one process, one core.

    python bench/headline.py

ResNet2500 (9,168 layers) on a K40c under `superneurons`: decided, checked and simulated, best of
five in processor time, from a loaded trace; and the search for Table 4's deepest network, once.
"""

import platform
import time
from datetime import date

from superneurons.machines import Machine, find_machine
from superneurons.notation import parse_call
from superneurons.policies import Policy, decide, find_policy
from superneurons.sim import play
from superneurons.studies import fit
from superneurons.traces import Trace, find_trace

TRACE = "resnet:n1=6,n2=32,n3=788,n4=6,batch=1"
TABLE_4 = "resnet:n1=6,n2=32,n4=6,batch=16"
REPEATS = 5


def main() -> None:
    machine, policy = find_machine("k40c"), find_policy("superneurons")
    print(f"{date.today()}, Python {platform.python_version()}, {platform.machine()}, one core")
    start = time.process_time()
    trace = find_trace(TRACE)
    _ = trace.facts.digest
    print(f"{TRACE}: built and compiled in {time.process_time() - start:.3f} s")
    best = min(once(trace, policy, machine) for _ in range(REPEATS))
    print(f"decided, checked and simulated in {best:.3f} s (bar: 0.6 s)")
    start = time.process_time()
    found = fit(parse_call(TABLE_4), "n3", machine, policy)
    assert found.best is not None
    print(
        f"fit {TABLE_4} --vary n3: n3={found.best.value} after {found.trials} trials in "
        f"{time.process_time() - start:.1f} s (bar: 30 s)"
    )


def once(trace: Trace, policy: Policy, machine: Machine) -> float:
    start = time.process_time()
    report = play(trace, decide(policy, trace, machine), machine)
    assert report.fits, report.why
    return time.process_time() - start


if __name__ == "__main__":
    main()
