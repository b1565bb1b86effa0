"""The programs that scripts/bench.sh runs: ours, bare loops (benches/reference), and peers (benches/peers)."""

import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile

WINDLASS = "target/release/windlass"
BARE = "target/reference/"
PEERS = "benches/peers/"
CONGESTION = "target/peers/congestion.so"
RATE, LATENCY, OPERATIONS, KEYS = "gbytes_per_second", "p50_us", "ops_per_second", "keys_per_second"
WAYS = ["epoll", "enter", "defer", "fixed", "sqpoll", "multishot"]
"""Of target/reference/uring."""
UNITS = {RATE: "GB/s", OPERATIONS: "/s", KEYS: "keys/s"}


IN_PROCESS = ("add", "gather")
"""Operations of `windlass bench` without a network."""


class Failed(Exception):
    """A program did not give a figure."""


FAILURES = (Failed, subprocess.TimeoutExpired, ValueError, KeyError)


class Contender:
    """A command whose last line of output is a JSON object with the figure in it. Of `rivals` the fastest has the bar.

    `scale` makes figures comparable: ours are of all workers together, those of an allreduce of one rank.
    """

    environment = {}

    rivals = ()

    others = False
    """Somebody else's program: where it does not run, the record says why, and lacks its figure."""

    around = 0.8
    """Seconds that a run takes beside those that it measures for, about."""

    def __init__(self, command, figure=RATE, bar=None, scale=1):
        self.command, self.figure, self.bar, self.scale = command.split(), figure, bar, scale

    def name(self):
        return " ".join(pathlib.Path(word).name if "/" in word else word for word in self.command)

    def unit(self):
        return UNITS.get(self.figure, "µs")

    def better(self, figure, other):
        """Whether one of its figures is at least as good as another."""
        return figure <= other if self.unit() == "µs" else figure >= other

    def takes(self, seconds):
        """How long a run of so many seconds takes, about: ours warm up for a quarter of them."""
        return 1.25 * seconds + self.around

    def missing(self):
        """What is not there to run it; None when all is."""
        program = self.command[0]
        return None if os.path.exists(program) or shutil.which(program) else program

    def run(self, seconds):
        return self.scale * float(last_object([*self.command, "--seconds", str(seconds)], seconds, self.environment)[self.figure])


def last_object(command, seconds, environment):
    """The JSON object in the last line that `command` prints."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120 + 20 * seconds, check=False, env={**os.environ, **environment}
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise Failed(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return json.loads(lines[-1])


def ours(rest, figure=RATE, scale=1, bar=None, key_list_bytes=None, transport="tcp"):
    """`key_list_bytes` is the servers' setting, where it is not the default. What needs a transport is told one: TCP, where nothing else is said."""
    way = "" if rest.split()[0] in IN_PROCESS else f" --transport {transport}"
    contender = Contender(f"{WINDLASS} bench {rest}{way} --json", figure, bar, scale)
    if key_list_bytes is not None:
        contender.environment = {"WINDLASS_KEY_LIST_BYTES": str(key_list_bytes)}
    return contender


def bare(rest, figure=RATE, bar=None):
    """A bare loop: its program and arguments."""
    return Contender(f"{BARE}{rest}", figure, bar)


def tcp(rest, bar=None, figure=RATE):
    return Contender(f"{BARE}tcp {rest} --congestion {usual_congestion()}", figure, bar)


def shm(rest, bar=None, figure=RATE):
    return Contender(f"{BARE}shm {rest}", figure, bar)


def either(bar, *contenders):
    """Ways to do the same: the bar stands beside the one with the best median."""
    for contender in contenders:
        contender.bar, contender.rivals = bar, contenders
    return contenders


class OwnTime(Contender):
    """What takes its own time, whatever it is told."""

    def takes(self, _seconds):
        return self.around


class Kernel(OwnTime):
    """One of our kernels, in arrays of 64 MiB: a line of what benches/kernels.rs prints."""

    around = 4

    def __init__(self, case, bar=None):
        super().__init__("cargo bench --locked --bench kernels -- --test", RATE, bar)
        self.case = case

    def name(self):
        return f"{super().name()}: {self.case}"

    def run(self, seconds):
        done = subprocess.run(self.command, capture_output=True, text=True, timeout=120, check=False)
        found = [line.removeprefix(self.case).split() for line in done.stdout.splitlines() if line.startswith(f"{self.case} ")]
        if done.returncode or len(found) != 1:
            raise Failed(f"{' '.join(self.command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return float(found[0][0])


class Idle(OwnTime):
    """What an idle connection takes of a server's memory beside its slots: what tests/many_workers.rs prints, with 512 workers at once."""

    around = 2

    def __init__(self, bar=None):
        super().__init__("cargo test --locked --release --test many_workers -- --nocapture", None, bar)

    def unit(self):
        return "KiB"

    def run(self, seconds):
        done = subprocess.run(self.command, capture_output=True, text=True, timeout=600, check=False)
        found = re.search(r"server: .* with 512: (\d+) for each", done.stdout + done.stderr)
        if done.returncode or not found:
            raise Failed(f"{' '.join(self.command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return int(found[1]) / 1024


class Uring(Contender):
    """A bare loop that some systems refuse."""

    def __init__(self, rest, figure=RATE):
        super().__init__(f"{BARE}uring {rest} --congestion {usual_congestion()}", figure)

    def missing(self):
        missing = super().missing()
        if missing:
            return missing
        refused = subprocess.run([*self.command, "--seconds", "0.01"], capture_output=True, check=False, timeout=120).returncode == 3
        return "io_uring" if refused else None


class Iperf(Contender):
    """One stream over loopback."""

    others = True

    def __init__(self, bar=None):
        super().__init__(f"iperf3 -c 127.0.0.1 -l 1M -C {usual_congestion()}", bar=bar)

    def run(self, seconds):
        port = free_port()
        server = subprocess.Popen(
            ["iperf3", "-s", "-1", "-B", "127.0.0.1", "-p", port, "--forceflush"], stdout=subprocess.PIPE, text=True
        )
        try:
            wait_for(server, "listening")
            # It takes whole seconds only.
            client = [*self.command, "-p", port, "-t", str(max(1, round(seconds))), "-J"]
            done = subprocess.run(client, capture_output=True, text=True, timeout=120, check=False)
            try:
                return json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"] / 8e9
            except (ValueError, KeyError) as error:
                raise Failed(f"{' '.join(client)}: {done.stdout}{done.stderr}") from error
        finally:
            server.kill()
            server.wait()


class Peer(Contender):
    """A program that can't be told a congestion control: it has ours by a library that is loaded before it (benches/peers/congestion.c)."""

    others = True
    around = 3

    def __init__(self, command, figure=RATE, bar=None):
        super().__init__(command, figure, bar)
        self.environment = {"LD_PRELOAD": os.path.abspath(CONGESTION), "BENCH_CONGESTION": usual_congestion()}

    def missing(self):
        return super().missing() or (None if os.path.exists(CONGESTION) else CONGESTION)


class Redis(Peer):
    """redis-benchmark with one client and a pipeline, against a redis-server that keeps nothing on disk."""

    def __init__(self, operation, size, pipeline, figure=RATE, bar=None):
        super().__init__(f"redis-benchmark -t {operation} -d {size} -P {pipeline} -c 1", figure, bar)
        self.operation, self.size, self.pipeline = operation, size, pipeline

    def missing(self):
        return super().missing() or (None if shutil.which("redis-server") else "redis-server")

    def run(self, seconds):
        port = free_port()
        with tempfile.TemporaryDirectory() as folder:
            server = subprocess.Popen(
                ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **self.environment},
            )
            try:
                wait_for(server, "Ready to accept connections")
                # It counts requests, not seconds; and a get of nothing answers nothing.
                self.rate(port, "set", 100)
                # It can't time what takes less than a millisecond.
                trial = min(self.rate(port, self.operation, 100), 1e6)
                rate = self.rate(port, self.operation, max(100, round(trial * seconds)))
            finally:
                server.kill()
                server.wait()
        return rate if self.figure == OPERATIONS else rate * self.size / 1e9

    def rate(self, port, operation, requests):
        # Whole pipelines: it sends no others, and takes itself for cut off when it has done more than it was told.
        requests = -(-requests // self.pipeline) * self.pipeline
        command = [*self.command, "-p", port, "-n", str(requests), "--csv"]
        command[2] = operation
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
        try:
            return float(done.stdout.strip().splitlines()[-1].split(",")[1].strip('"'))
        except (IndexError, ValueError) as error:
            raise Failed(f"{' '.join(command)}: {done.stdout}{done.stderr}") from error


class Allreduce(Peer):
    """MPI_Allreduce between two ranks of Open MPI; `transport` is what its byte transfer layer takes."""

    def __init__(self, size, transport, bar=None):
        layers = {"tcp": "self,tcp --mca btl_tcp_if_include lo", "shm": "self,vader"}[transport]
        super().__init__(
            f"mpirun --oversubscribe --bind-to none --mca btl {layers} -n 2 target/peers/allreduce --bytes {size}", bar=bar
        )
        self.environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

    def missing(self):
        return super().missing() or (None if os.path.exists("target/peers/allreduce") else "mpicc")


class Python(Peer):
    """A program of benches/peers, run by a Python that has `module`."""

    def __init__(self, module, program, rest, figure=RATE, bar=None):
        super().__init__(f"{python_with(module) or 'python3'} {PEERS}{program} {rest}", figure, bar)
        self.module = module

    def missing(self):
        return super().missing() or (None if python_with(self.module) else f"python3 with {self.module}")


@functools.cache
def python_with(module):
    """A Python that can import it: the one of target/peers, the usual one, or the system's."""
    for program in ("target/peers/mxnet/bin/python", sys.executable, "/usr/bin/python3"):
        if os.path.exists(program):
            done = subprocess.run([program, "-c", f"import {module}"], capture_output=True, check=False)
            if done.returncode == 0:
                return program
    return None


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def wait_for(process, word):
    """Reads what it prints until `word` is in a line."""
    for line in process.stdout:
        if word in line:
            return
    raise Failed(f"{process.args[0]} ended at once")


@functools.cache
def usual_congestion():
    """What windlass itself takes: see src/transport/tcp/socket.rs."""
    with socket.socket() as probe:
        for name in ("cubic", "reno"):
            with contextlib.suppress(OSError):
                probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
                break
        return probe.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
