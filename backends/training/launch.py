"""Several processes that train together: start them without a launcher, or join those that one started.

PyTorch's are started by torch.distributed.run, MLX's by mlx.launch, which exits with 0 whatever happens to its ranks;
each rank therefore leaves a note of how it ended, and the run has failed unless all of them ended well. One process
needs neither of them: a ring of one cannot be joined in MLX.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from backends import get
from backends.errors import BAD_INPUT, InputError

NOTES = "AUDIOSMITH_RANK_NOTES"  # the folder for the ranks' notes, set for ranks that we started
GRACE_S = 15.0  # for the other ranks to end by themselves when one has failed
JOINED = ("MLX_RANK", "LOCAL_RANK")  # what mlx.launch and torchrun set for their processes


class Ranked(Protocol):
    """The options of a command that has --ddp."""

    @property
    def backend(self) -> str: ...
    @property
    def device(self) -> str | None: ...
    @property
    def ddp(self) -> bool: ...
    @property
    def nproc(self) -> int: ...


Options = TypeVar("Options", bound=Ranked)


def start(module: str, options: Options, train: Callable[[Options], object]) -> None:
    """What the command `python -m module` does: start the ranks of --ddp, or `train` in this process."""
    if options.ddp and not is_rank():
        backend = get(options.backend, options.device).name
        launch(module, sys.argv[1:], backend, options.nproc or devices(backend))
        return
    with noted():
        train(options)


def check(options: Ranked) -> None:
    """Raise InputError where --ddp's processes are to share one device, or are counted without --ddp."""
    if options.nproc and not options.ddp:
        raise InputError(f"--nproc {options.nproc}: only with --ddp, which starts so many processes")
    if options.ddp and options.device not in (None, "cpu"):
        raise InputError(f"--device {options.device}: with --ddp each process takes a device of its own: leave it out")


def is_rank() -> bool:
    """Whether this process was started as one of several."""
    return any(name in os.environ for name in JOINED)


def launch(module: str, argv: Sequence[str], backend: str, nproc: int) -> None:
    """Run `python -m module argv` in `nproc` processes and end with their exit code, not zero if any of them failed."""
    if nproc < 1:
        raise InputError(f"--nproc {nproc}: expected at least 1")
    with tempfile.TemporaryDirectory(prefix="audiosmith-") as notes:
        environment = {**os.environ, NOTES: notes, "PYTHONUNBUFFERED": "1"}
        if nproc == 1:
            environment["LOCAL_RANK"] = "0"
        code = _run(_command(module, argv, backend, nproc), environment)
        codes = [int(path.read_text(encoding="utf-8")) for path in Path(notes).glob("*.exit")]
    failed = [value for value in codes if value]
    if BAD_INPUT in failed:  # of which the ranks have said what it is
        sys.exit(BAD_INPUT)
    if failed or len(codes) < nproc or code:
        missing = nproc - len(codes)
        print(
            f"error: {len(failed) + missing} of {nproc} processes failed; run the same command again to continue",
            file=sys.stderr,
        )
        sys.exit(failed[0] if failed else code or 1)


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Run it to its end and return its exit code. Told to stop, tell the ranks, which save and end.

    mlx.launch would leave them running, and ranks whose partner died may wait for it for ever: they are ended after
    `GRACE_S`. Control-C reaches them from the terminal, as it does this process.
    """
    notes = Path(environment[NOTES])
    process = subprocess.Popen(command, env=environment)

    def forward(signum: int, _frame: object) -> None:
        for pid in _alive(notes).values() or [process.pid]:
            _send(pid, signum)

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, forward),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
    }
    lost_since = None
    try:
        while True:
            try:
                return process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                lost_since = (lost_since or time.monotonic()) if _lost(notes) else None
            if lost_since is not None and time.monotonic() - lost_since > GRACE_S:
                for pid in _alive(notes).values():
                    _send(pid, signal.SIGKILL)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _started(notes: Path) -> dict[str, int]:
    """The process numbers of the ranks that have begun."""
    return {rank: int(pid) for rank, pid in (path.stem.split("_") for path in notes.glob("*.started"))}


def _alive(notes: Path) -> dict[str, int]:
    return {rank: pid for rank, pid in _started(notes).items() if _send(pid, 0)}


def _lost(notes: Path) -> bool:
    """Whether a rank has ended badly, or without a word."""
    ended = {path.stem: path.read_text(encoding="utf-8") for path in notes.glob("*.exit")}
    silent = set(_started(notes)) - set(_alive(notes)) - set(ended)
    return bool(silent) or any(code != "0" for code in ended.values())


def _send(pid: int, signum: int) -> bool:
    """Send a signal; whether there is such a process."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def noted() -> Iterator[None]:
    """Leave notes of this rank and of how it ends, if it was started by `launch`. Killed, it leaves but one."""
    folder = os.environ.get(NOTES)
    rank = next((os.environ[name] for name in ("RANK", *JOINED) if name in os.environ), "0")
    if folder:
        Path(folder, f"{rank}_{os.getpid()}.started").touch()
    code: object = 1
    try:
        yield
        code = 0
    except InputError:
        code = BAD_INPUT
        raise
    except SystemExit as stop:
        code = stop.code if stop.code is not None else 0
        raise
    finally:
        if folder:
            number = code if isinstance(code, int) else 1
            Path(folder, f"{rank}.exit").write_text(str(number), encoding="utf-8")


def devices(backend: str) -> int:
    """How many processes make sense here: one per CUDA device, else one."""
    if backend != "torch":
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _command(module: str, argv: Sequence[str], backend: str, nproc: int) -> list[str]:
    if nproc == 1:
        return [sys.executable, "-m", module, *argv]
    if backend == "torch":
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc}", "-m", "--", module]
        return [sys.executable, *start, *argv]
    program = Path(sys.executable).with_name("mlx.launch")
    port = ["--starting-port", str(_free_port())]
    return [str(program), "-n", str(nproc), *port, "--", sys.executable, "-m", module, *argv]


def _free_port() -> int:
    """A port from which on there are some, so that two runs do not meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
