"""What scripts/bench.sh measures, and how: see there.

A measure has a few contenders, which run in turns. The first is ours; the others are what its figure is divided by. A bar beside ours is
for its own figure, one beside another contender for the ratio to it; both for medians.
"""

import argparse
import datetime
import itertools
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import time

import bench_peers
import bench_sweeps
from bench_programs import KEYS, LATENCY, RATE, WAYS, Failed, Iperf, Kernel, Uring, bare, either, ours, python_with, shm, tcp, usual_congestion


def summary(contender, taken):
    return {"unit": contender.unit(), "median": statistics.median(taken), "least": min(taken), "most": max(taken)}


class Measure:
    """Contenders for one thing; where less is better the ratio is still ours divided by theirs."""

    def __init__(self, name, ours, *others):
        self.name, self.contenders = name, [ours, *others]

    def run(self, rounds, seconds):
        """A row for each contender that is there."""
        self.begin()
        for _ in range(rounds):
            self.turn(seconds)
        return self.rows()

    def begin(self):
        self.figures = {}
        for contender in self.contenders:
            missing = contender.missing()
            if missing:
                print(f"{self.name}: no {missing}: {contender.name()} is left out", file=sys.stderr)
            else:
                self.figures[contender] = []

    def turn(self, seconds):
        for contender, taken in self.figures.items():
            taken.append(contender.run(seconds))

    def rows(self):
        first = next(iter(self.figures.values()))
        return [self.row(contender, taken, first) for contender, taken in self.figures.items()]

    def row(self, contender, taken, first):
        figures = summary(contender, taken)
        ratio = None if taken is first else statistics.median(ours / theirs for ours, theirs in zip(first, taken))
        fastest = all(figures["median"] >= statistics.median(self.figures[rival]) for rival in contender.rivals)
        verdict = judged(contender.bar if fastest else None, figures["median"] if ratio is None else ratio)
        return {"measure": self.name, "command": contender.name(), **figures, "ratio": ratio, **verdict}


class Growth:
    """Measures that differ in the size of the table: whether the ratio to the fastest bare loop stays the same."""

    def __init__(self, name, bar, *measures):
        self.name, self.bar, self.measures = name, bar, measures

    def run(self, rounds, seconds):
        for measure in self.measures:
            measure.begin()
        for _ in range(rounds):
            for measure in self.measures:
                measure.turn(seconds)
        taken = [measure.rows() for measure in self.measures]
        ratios = [max(rows[1:], key=lambda row: row["median"])["ratio"] for rows in taken]
        growth = max(ratios) / min(ratios)
        last = {"measure": self.name, "command": "the largest of these ratios to the smallest", "ratio": growth, **judged(self.bar, growth)}
        return [*itertools.chain(*taken), last]


def judged(bar, value):
    """A bar is `>=` or `<=`, and a number."""
    if bar is None:
        return {"bar": None, "met": None}
    sign, limit = bar.split()
    return {"bar": bar, "met": value >= float(limit) if sign == ">=" else value <= float(limit)}


def measures():
    """All of them."""
    mib = 1 << 20
    small_table = 4 * mib
    million = "sparse-push --keys 100000 --dim 1 --rows 1000000"
    bare_sparse = f"sparse push --rows 1000000 --congestion {usual_congestion()}"
    walked = "memory read --bytes 536870912"
    large = f"--bytes {16 * mib}"

    def either_way(rest, bar=None):
        """A loop whose receives block, and one whose receives spin."""
        return either(bar, tcp(rest), tcp(f"{rest} --spin 1"))

    def pushes(size, table):
        return Measure(f"push, table of {size} MiB", ours(f"push --bytes 1M --table-bytes {size}M"), *either_way(f"add --table {table}"))

    return [
        Measure("write", ours("write --bytes 1M --table-bytes 4M"), tcp("stream"), Iperf()),
        Measure("push", ours("push --bytes 1M"), *either_way("add", ">= 0.9"), Iperf(">= 1.0")),
        Measure("push 16M", ours("push --bytes 16M"), *either_way(f"add {large}", ">= 0.9")),
        Growth("push, growth of the table", "<= 1.10", *(pushes(size, size * mib) for size in (64, 256, 1024))),
        Measure("push, table of 4 MiB", ours("push --bytes 1M --table-bytes 4M"), *either_way(f"add --table {small_table}"), Iperf()),
        Measure("pull", ours("pull --bytes 1M"), tcp("stream", ">= 0.9"), *either_way("source"), Iperf()),
        Measure("pull, table of 4 MiB", ours("pull --bytes 1M --table-bytes 4M"), tcp("stream"), *either_way(f"source --table {small_table}"), Iperf()),
        Measure("push-pull 16M", ours("push-pull --bytes 16M"), *either_way(f"duplex {large}", ">= 0.8")),
        Measure("latency, spinning", ours("latency --bytes 64 --poll spin", LATENCY), tcp("pingpong --spin 1", "<= 1.3", LATENCY)),
        Measure("latency, blocking", ours("latency --bytes 64 --poll block", LATENCY), tcp("pingpong", "<= 1.3", LATENCY)),
        Measure("add, in process", ours("add --bytes 1M"), bare("memory add")),
        Measure("fold fp32, k = 8, in process", Kernel("sum fp32 x8"), bare(walked, bar=">= 0.95"), bare(f"memory fold --bytes {64 * mib}")),
        Measure("fold fp16, k = 8, in process", Kernel("sum fp16 x8"), bare(walked, bar=">= 0.85")),
        Measure("sparse push, one list", ours(f"{million} --lists 1", KEYS, bar=">= 100e6"), bare(f"{bare_sparse} --lists 1", KEYS)),
        Measure("sparse push, ten lists in turns", ours(million, KEYS), bare(f"{bare_sparse} --lists 10", KEYS)),
        Measure("sparse push, 16 drawn lists in turns, no key cache", ours(f"{million} --lists 16", KEYS, key_list_bytes=0), bare(f"{bare_sparse} --lists 16", KEYS, ">= 0.7")),
        Measure("sparse push, wide rows", ours("sparse-push --keys 10000 --dim 64 --rows 1000000"), ours("push --bytes 2560000", RATE, bar=">= 0.8")),
        Measure("gather", ours("gather --rows 10000000 --keys 4096", KEYS), bare("memory gather", KEYS, ">= 0.8")),
        Measure("sparse pull", ours("sparse-pull --rows 10000000 --keys 4096", KEYS), bare("memory gather", KEYS)),
        Measure("shm push 16M", ours("push --bytes 16M --transport shm"), shm(f"add {large}", ">= 0.9"), shm(f"ring {large}")),
        Measure("shm pull 16M", ours("pull --bytes 16M --transport shm"), bare("memory copy")),
        Measure("shm latency, spinning", ours("latency --bytes 64 --poll spin --transport shm", LATENCY, bar="<= 2"), shm("pingpong --spin 1", None, LATENCY)),
        Measure("shm latency, blocking", ours("latency --bytes 64 --poll block --transport shm", LATENCY), shm("pingpong", "<= 1.3", LATENCY), shm("pingpong --spin -1", None, LATENCY)),
        Measure("io_uring beside epoll, stream", *(Uring(f"stream --way {way}") for way in WAYS)),
        Measure("io_uring beside epoll, ping-pong", *(Uring(f"pingpong --way {way}", LATENCY) for way in WAYS)),
    ]


def run_sweep(sweep, rounds, seconds, short):
    """A row for each point; `short` takes the ends of each series only."""
    points = sweep.points()
    if short:
        ends = {series: (taken[0][0], taken[-1][0]) for series, taken in sweep.series.items()}
        points = [point for point in points if point[1] in ends[point[0]]]
    figures = [[] for _ in points]
    for _ in range(rounds):
        for (_, _, contender), taken in zip(points, figures):
            taken.append(contender.run(seconds))
    return [
        {"series": series, "x": x, "command": contender.name(), **summary(contender, taken)}
        for (series, x, contender), taken in zip(points, figures)
    ]


def amount(row):
    """Median and range, with the digits that they are worth."""
    digits = 0 if row["median"] >= 1000 else 1 if row["median"] >= 1 else 4
    return f"{row['median']:.{digits}f} ({row['least']:.{digits}f}–{row['most']:.{digits}f}) {row['unit']}"


def table(rows):
    """Markdown."""
    lines = ["| measure | command | median (range) | ours / it | bar |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        figure = amount(row) if "median" in row else ""
        bar = f"{row['bar']}: {'met' if row['met'] else 'missed'}" if row["bar"] else ""
        lines.append(f"| {row['measure']} | `{row['command']}` | {figure} | {ratio} | {bar} |")
    return "\n".join(lines)


def sweep_table(sweep, rows):
    """Markdown: medians, a row for each series and a column for each x."""
    columns = sorted({row["x"] for row in rows})
    found = {(row["series"], row["x"]): row["median"] for row in rows}
    lines = [f"{sweep.name}: {sweep.unit} by {sweep.x}", "", "| | " + " | ".join(map(str, columns)) + " |"]
    lines.append("| --- |" + " --- |" * len(columns))
    for series in sweep.series:
        cells = [f"{found[series, x]:.3g}" if (series, x) in found else "" for x in columns]
        lines.append(f"| {series} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cpu():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def flags():
    parser = argparse.ArgumentParser(prog="scripts/bench.sh")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("expected at least one round, and some time")
    if options.smoke:
        options.rounds, options.seconds, options.peers, options.sweep = 1, 0.1, True, True

    def chosen(things):
        return [thing for thing in things if not options.only or any(word in thing.name for word in options.only)]

    options.measures = chosen(measures() + (bench_peers.measures(Measure) if options.peers else []))
    options.sweeps = chosen(bench_sweeps.sweeps() if options.sweep else [])
    if not options.measures and not options.sweeps:
        parser.error(f"nothing that is measured has one of {options.only} in its name")
    return options


def timed(name, run, *arguments):
    """What `run` returns; a program that fails ends everything, since a table with holes would not say so."""
    started = time.monotonic()
    try:
        rows = run(*arguments)
    except (Failed, subprocess.TimeoutExpired, ValueError, KeyError) as error:
        sys.exit(f"bench.sh: {name}: {error}")
    print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return rows


def main():
    options = flags()
    rounds, seconds = options.rounds, options.seconds
    rows = [row for measure in options.measures for row in timed(measure.name, measure.run, rounds, seconds)]
    swept = [(sweep, timed(sweep.name, run_sweep, sweep, rounds, seconds, options.smoke)) for sweep in options.sweeps]

    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    load = pathlib.Path("/proc/loadavg").read_text().split()[0]
    commit = output("git", "rev-parse", "--short", "HEAD") or "unknown"
    changed = " with changes" if output("git", "status", "--porcelain") else ""
    heading = (
        f"{today}, {cpu()}, {os.cpu_count()} CPUs, Linux {os.uname().release}, load {load} at the end, "
        f"{rounds} rounds of {seconds:g} s in turns\n"
        f"`{shlex.join(['scripts/bench.sh', *sys.argv[1:]])}`, commit {commit}{changed}, {output('rustc', '--version')}\n"
        f"TCP under {usual_congestion()}: ours and the bare loops by TCP_CONGESTION, iperf3 by -C, peers by a library that is loaded "
        "before them (benches/peers/congestion.c); values of torch.distributed.rpc go through shared memory"
    )
    tables = ([table(rows)] if rows else []) + [sweep_table(*both) for both in swept]
    text = "\n\n".join([heading, *tables]) + "\n"
    print(text, end="")
    if options.record or options.smoke:
        folder = pathlib.Path("target/smoke" if options.smoke else "benches/record")
        record(folder, heading, f"{today}-{cpu()}", text, rows, swept)


def record(folder, heading, name, text, rows, swept):
    """NAME.json and .md, and a plot of each sweep."""
    folder.mkdir(parents=True, exist_ok=True)
    name = name.replace(" ", "-").replace("(R)", "").replace("/", "-")
    (folder / f"{name}.md").write_text(text)
    sweeps = [{"name": sweep.name, "x": sweep.x, "unit": sweep.unit, "rows": taken} for sweep, taken in swept]
    contents = folder / f"{name}.json"
    contents.write_text(json.dumps({"heading": heading, "rows": rows, "sweeps": sweeps}, indent=1) + "\n")
    python = python_with("matplotlib")
    if python:
        subprocess.run([python, "scripts/bench_plots.py", contents], check=True)
    else:
        print("no python3 with matplotlib: no plots", file=sys.stderr)


if __name__ == "__main__":
    main()
