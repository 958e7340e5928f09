"""Time and peak memory of a command: `python -m benchmarks.one_process COMMAND ...`, or `cost` from a benchmark.

A process of its own, since Linux counts the memory of whoever starts a process as the new one's until it is replaced.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Cost:
    """What a process took: seconds from its start to its end, seconds of CPU time, bytes resident at most."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


def cost(*command: str) -> Cost:
    """Run a command in silence; raises CalledProcessError where it fails."""
    run = [sys.executable, "-m", __name__, *command]
    return Cost(**json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout))


def touch_memory(count: int) -> None:
    """Have another process write to so many bytes and give them back, so that the machine holds them.

    A virtual machine whose host takes back what is free pays for the first use of a page, here up to a second per GB.
    """
    subprocess.run([sys.executable, "-c", f"b'.' * {count}"], check=True)


def main() -> None:
    """Run the command of the command line and print what it took as JSON."""
    started = time.perf_counter()
    subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall_s = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024
    print(json.dumps(asdict(Cost(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss * unit))))


if __name__ == "__main__":
    main()
