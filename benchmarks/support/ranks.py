"""Groups of rank processes that live as long as a benchmark, work on command and sleep in between."""
import contextlib
import json
import os
import pathlib
import random
import select
import socket
import subprocess
import sys
import time

FOLDER = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = FOLDER / "programs"
PYTHON_SYSTEMS = ("pytorch", "pytorch_ddp", "hf_accelerate")


class Skip(Exception):
    """This machine cannot run it, and why."""


class Failed(Exception):
    """A program of a benchmark did not do what it was asked for."""


class Host:
    """Where a rank runs. This machine, unless a benchmark makes others of network namespaces."""

    def __init__(self, prefix=(), address="127.0.0.1", interface=None):
        self.prefix, self.address, self.interface = list(prefix), address, interface


# Above the tests' ports, below those that the system hands out by itself. Each is tried once: ranks of several groups
# start at the same time, and what one has been given is free until it listens there.
_ports = iter(random.sample(range(30000, 32700), 2700))


def free_port():
    for port in _ports:
        with socket.socket() as probe:
            with contextlib.suppress(OSError):
                probe.bind(("", port))
                return port
    raise Failed("there is no free port between 30000 and 32700")


class Group:
    """The ranks of one system. `hosts` has one entry per rank."""

    def __init__(self, system, hosts, *, build, python, device="cpu", program="rank"):
        self.system, self.world_size = system, len(hosts)
        self.logs, self.processes, self.replies = [], [], []
        folder = build / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        for rank, host in enumerate(hosts):
            if system in PYTHON_SYSTEMS:
                command = [python, str(PROGRAMS / "rank.py"), system, device]
            else:
                suffix = "_nccl" if device == "cuda" else ""
                command = [str(build / "benchmarks" / (program + suffix)), system, device]
            reading, writing = os.pipe()
            log = folder / f"{system}-{rank}-of-{len(hosts)}.log"
            environment = dict(
                os.environ,
                RANK=str(rank), LOCAL_RANK=str(rank if not host.prefix else 0),
                WORLD_SIZE=str(len(hosts)), LOCAL_WORLD_SIZE=str(len(hosts) if not host.prefix else 1),
                MASTER_ADDR=hosts[0].address, MASTER_PORT=str(port),
                OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", ACCEL_BENCH_REPLY=str(writing),
                PYTHONPYCACHEPREFIX=str(build / "pycache"),  # to compile torch again takes 5 s per rank
            )  # fmt: skip
            for name in ("GLOO_SOCKET_IFNAME", "PYTHONDONTWRITEBYTECODE"):
                environment.pop(name, None)
            if host.interface:
                environment["GLOO_SOCKET_IFNAME"] = host.interface
            with open(log, "wb") as output:
                self.processes.append(subprocess.Popen(
                    host.prefix + command, stdin=subprocess.PIPE, stdout=output, stderr=output,
                    env=environment, pass_fds=[writing]))  # fmt: skip
            os.close(writing)
            self.replies.append(os.fdopen(reading, "rb"))
            self.logs.append(log)

    def wait_until_ready(self):
        self._read(deadline_s=120)

    def ask(self, **command):
        """Sends a command to all ranks; their answers, in the order of ranks."""
        line = json.dumps(command).encode() + b"\n"
        for process in self.processes:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(line)
                process.stdin.flush()
        return self._read(deadline_s=600)

    def end(self):
        for process in self.processes:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()

    def _read(self, deadline_s):
        deadline = time.monotonic() + deadline_s
        answers = [None] * self.world_size
        waiting = dict(enumerate(self.replies))
        while waiting:
            ready, _, _ = select.select(list(waiting.values()), [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                self._fail(min(waiting), f"did not answer within {deadline_s} s")
            for rank in [rank for rank, reply in waiting.items() if reply in ready]:
                line = waiting.pop(rank).readline()
                if not line:
                    self._fail(rank, "ended")
                answers[rank] = json.loads(line)
                if "error" in answers[rank]:
                    self._fail(rank, "says: " + answers[rank]["error"])
        return answers

    def _fail(self, rank, what):
        tail = self.logs[rank].read_text(errors="replace").splitlines()[-8:]
        raise Failed(f"{self.system}, rank {rank} of {self.world_size} {what}\n"
                         + "".join(f"    {line}\n" for line in tail) + f"its output is in {self.logs[rank]}")


@contextlib.contextmanager
def groups(systems, hosts, **settings):
    """Starts them all at once: {system: Group}. They are ended at the end, and killed after a failure."""
    started = {}
    try:
        for system in systems:
            started[system] = Group(system, hosts, **settings)
        for group in started.values():
            group.wait_until_ready()
        yield started
    except BaseException:
        for group in started.values():
            group.kill()
        raise
    for group in started.values():
        group.end()
