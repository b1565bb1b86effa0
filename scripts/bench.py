"""What scripts/bench.sh measures, and how: see there.

A measure has a few contenders, which run in turns. The first is ours; the others are what its figure is divided by.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import time

WINDLASS = "target/release/windlass"
BARE = "target/reference/"
RATE, LATENCY = "gbytes_per_second", "p50_us"


class Failed(Exception):
    """A program did not give a figure."""


class Contender:
    """A command whose last line of output is a JSON object with the figure in it."""

    def __init__(self, command, figure=RATE, bar=None, note=""):
        self.command, self.figure, self.bar, self.note = command.split(), figure, bar, note

    def name(self):
        return " ".join(pathlib.Path(word).name if word.startswith("target/") else word for word in self.command)

    def missing(self):
        program = self.command[0]
        return None if os.path.exists(program) or shutil.which(program) else program

    def run(self, seconds):
        command = [*self.command, "--seconds", str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120 + 20 * seconds, check=False)
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            raise Failed(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return float(json.loads(lines[-1])[self.figure])


class Allreduce(Contender):
    """Open MPI within this host, by shared memory, two ranks. Its figure is what each rank gets."""

    def __init__(self, size, bar=None):
        root = "--allow-run-as-root " if os.geteuid() == 0 else ""
        super().__init__(f"mpirun {root}-n 2 --mca btl vader,self {BARE}allreduce --bytes {size}", bar=bar)

    def missing(self):
        program = f"{BARE}allreduce"
        return super().missing() or (None if os.path.exists(program) else program)


class EachOfTwo(Contender):
    """A job of two workers, whose figure is what both get."""

    def run(self, seconds):
        return super().run(seconds) / 2


class Iperf(Contender):
    """One stream over loopback."""

    def __init__(self, congestion, bar=None):
        super().__init__(f"iperf3 -c 127.0.0.1 -l 1M -C {congestion}", bar=bar)

    def run(self, seconds):
        with contextlib.closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        server = subprocess.Popen(
            ["iperf3", "-s", "-1", "-B", "127.0.0.1", "-p", port, "--forceflush"], stdout=subprocess.PIPE, text=True
        )
        try:
            for line in server.stdout:
                if "listening" in line:
                    break
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


class Measure:
    """Contenders for one thing; where less is better the ratio is still ours divided by theirs."""

    def __init__(self, name, ours, *others):
        self.name, self.contenders = name, [ours, *others]

    def run(self, rounds, seconds):
        """A row for each contender that is there; none without ours."""
        present, missing = [], []
        for contender in self.contenders:
            (missing if contender.missing() else present).append(contender)
        for contender in missing:
            print(f"{self.name}: no {contender.missing()}: left out", file=sys.stderr)
        figures = [[] for _ in present]
        for _ in range(rounds):
            for contender, taken in zip(present, figures):
                taken.append(contender.run(seconds))
        rows = []
        for contender, taken in zip(present, figures):
            ratios = [ours / theirs for ours, theirs in zip(figures[0], taken)]
            rows.append({
                "measure": self.name,
                "command": contender.name(),
                "unit": "GB/s" if contender.figure == RATE else "µs",
                "median": statistics.median(taken),
                "least": min(taken),
                "most": max(taken),
                "ratio": None if contender is present[0] else statistics.median(ratios),
                "bar": contender.bar,
            })
        return rows


def usual_congestion():
    """What windlass itself takes: see src/transport/tcp/socket.rs."""
    proc = pathlib.Path("/proc/sys/net/ipv4")
    available = (proc / "tcp_available_congestion_control").read_text().split()
    usual = (proc / "tcp_congestion_control").read_text().strip()
    return next((name for name in ("cubic", "reno") if name in available), usual)


def measures():
    """All of them."""
    congestion = usual_congestion()
    mib = 1 << 20

    def ours(rest, figure=RATE):
        return Contender(f"{WINDLASS} bench {rest} --json", figure)

    def tcp(rest, bar=None, figure=RATE):
        return Contender(f"{BARE}tcp {rest} --congestion {congestion}", figure, bar)

    def shm(rest, bar=None, figure=RATE):
        return Contender(f"{BARE}shm {rest}", figure, bar)

    def bsp(mibs):
        size, table = f"--bytes {mibs}M", f"--table-bytes {mibs}M"
        rest = f"push-pull {size} {table} --consistency bsp --workers 2 --threads 2 --transport shm"
        ours = EachOfTwo(f"{WINDLASS} bench {rest} --json")
        return Measure(f"shm bsp {mibs}M, two workers", ours, Allreduce(mibs * mib, ">= 1.5"))

    small_table = 4 * mib
    return [
        Measure("write", ours("write --bytes 1M --table-bytes 4M"), tcp("stream"), Iperf(congestion)),
        Measure("push", ours("push --bytes 1M"), tcp("add", ">= 0.9"), Iperf(congestion, ">= 0.7")),
        Measure("push 16M", ours("push --bytes 16M"), tcp(f"add --bytes {16 * mib}", ">= 0.9")),
        Measure("push, table of 4 MiB", ours("push --bytes 1M --table-bytes 4M"), tcp(f"add --table {small_table}"), Iperf(congestion)),
        Measure("pull", ours("pull --bytes 1M"), tcp("source", ">= 0.9"), Iperf(congestion, ">= 0.7")),
        Measure("pull, table of 4 MiB", ours("pull --bytes 1M --table-bytes 4M"), tcp(f"source --table {small_table}"), Iperf(congestion)),
        Measure("push-pull 16M", ours("push-pull --bytes 16M"), tcp(f"duplex --bytes {16 * mib}", ">= 0.8")),
        Measure("latency, spinning", ours("latency --bytes 64 --poll spin", LATENCY), tcp("pingpong --spin 1", "<= 1.3", LATENCY)),
        Measure("latency, blocking", ours("latency --bytes 64 --poll block", LATENCY), tcp("pingpong", "<= 1.3", LATENCY)),
        Measure("shm push 16M", ours("push --bytes 16M --transport shm"), shm(f"add --bytes {16 * mib}", ">= 0.9")),
        bsp(16),
        bsp(64),
        Measure("shm latency, spinning", ours("latency --bytes 64 --poll spin --transport shm", LATENCY), shm("pingpong --spin 1", None, LATENCY)),
        Measure("shm latency, blocking", ours("latency --bytes 64 --poll block --transport shm", LATENCY), shm("pingpong", "<= 1.3", LATENCY), shm("pingpong --spin -1", None, LATENCY)),
    ]


def table(rows):
    """Markdown."""
    lines = ["| measure | command | median (range) | ours / it | bar |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        figures = f"{row['median']:.1f} ({row['least']:.1f}–{row['most']:.1f}) {row['unit']}"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        lines.append(f"| {row['measure']} | `{row['command']}` | {figures} | {ratio} | {row['bar'] or ''} |")
    return "\n".join(lines)


def cpu():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench.sh")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("expected at least one round, and some time")
    rounds, seconds = (1, 0.1) if options.smoke else (options.rounds, options.seconds)
    chosen = [m for m in measures() if not options.only or any(word in m.name for word in options.only)]
    if not chosen:
        parser.error(f"no measure has one of {options.only} in its name")
    rows = []
    for measure in chosen:
        started = time.monotonic()
        try:
            rows += measure.run(rounds, seconds)
        except (Failed, subprocess.TimeoutExpired, ValueError, KeyError) as error:
            sys.exit(f"bench.sh: {measure.name}: {error}")
        print(f"{measure.name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    load = pathlib.Path("/proc/loadavg").read_text().split()[0]
    heading = (
        f"{today}, {cpu()}, {os.cpu_count()} CPUs, Linux {os.uname().release}, load {load} at the end, "
        f"{rounds} rounds of {seconds:g} s in turns"
    )
    text = f"{heading}\n\n{table(rows)}\n"
    print(text, end="")
    if options.record:
        name = f"{today}-{cpu()}".replace(" ", "-").replace("(R)", "").replace("/", "-")
        record = pathlib.Path("benches/record")
        record.mkdir(exist_ok=True)
        (record / f"{name}.md").write_text(text)
        (record / f"{name}.json").write_text(json.dumps({"heading": heading, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
