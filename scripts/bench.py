"""What scripts/bench.sh measures, and how: see there.

A measure has a few contenders, which run in turns. The first is ours; the others are what its figure is divided by. A bar beside ours is
for its own figure, one beside another contender for the ratio to it; both for medians. What is not installed, and somebody else's program
that fails, is left out, and the record says why; where ours or a bare loop fails, all ends.
"""

import argparse
import datetime
import itertools
import json
import os
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import time

import bench_peers
import bench_sweeps
from bench_programs import FAILURES, KEYS, LATENCY, RATE, WAYS, Idle, Iperf, Kernel, Uring, bare, either, ours, python_with, shm, tcp, usual_congestion


def summary(contender, taken):
    return {"unit": contender.unit(), "median": statistics.median(taken), "least": min(taken), "most": max(taken)}


class Measure:
    """Contenders for one thing; where less is better the ratio is still ours divided by theirs."""

    strict = False
    """Whether a program of somebody else's that fails ends everything, too."""

    def __init__(self, name, ours, *others):
        self.name, self.contenders = name, [ours, *others]

    def run(self, rounds, seconds):
        """A row for each contender that is there."""
        self.begin()
        for _ in range(rounds):
            self.turn(seconds)
        return self.rows()

    def begin(self):
        self.figures = {contender: [] for contender in self.contenders}
        self.left_out = {}
        for contender in self.contenders:
            missing = contender.missing()
            if missing:
                self.leave_out(contender, f"no {missing}")

    def leave_out(self, contender, why):
        print(f"{self.name}: {contender.name()} is left out: {why}", file=sys.stderr)
        self.left_out[contender] = why
        del self.figures[contender]

    def turn(self, seconds):
        for contender in list(self.figures):
            try:
                self.figures[contender].append(contender.run(seconds))
            except FAILURES as error:
                if not contender.others or self.strict:
                    raise
                self.leave_out(contender, " ".join(str(error).split())[:200])

    def rows(self):
        return [self.row(contender) for contender in self.contenders]

    def row(self, contender):
        named = {"measure": self.name, "command": contender.name()}
        if contender in self.left_out:
            return {**named, "left_out": self.left_out[contender], "ratio": None, **judged(contender.bar, None)}
        taken, first = self.figures[contender], self.figures.get(self.contenders[0], [])
        figures = summary(contender, taken)
        ratio = None if taken is first or not first else statistics.median(ours / theirs for ours, theirs in zip(first, taken))
        rivals = [statistics.median(self.figures[rival]) for rival in contender.rivals if rival in self.figures]
        best = all(contender.better(figures["median"], rival) for rival in rivals)
        verdict = judged(contender.bar if best else None, figures["median"] if taken is first else ratio)
        return {**named, **figures, "ratio": ratio, **verdict}

    def takes(self, seconds):
        """How long a round takes, about, if nothing is left out."""
        return sum(contender.takes(seconds) for contender in self.contenders)


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

    def takes(self, seconds):
        return sum(measure.takes(seconds) for measure in self.measures)


def judged(bar, value):
    """A bar is `>=` or `<=`, and a number."""
    if bar is None or value is None:
        return {"bar": bar, "met": None}
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
        Measure("shm push 16M", ours("push --bytes 16M", transport="shm"), shm(f"add {large}", ">= 0.9"), shm(f"ring {large}")),
        Measure("shm pull 16M", ours("pull --bytes 16M", transport="shm"), bare("memory copy")),
        Measure("shm latency, spinning", ours("latency --bytes 64 --poll spin", LATENCY, bar="<= 2", transport="shm"), shm("pingpong --spin 1", None, LATENCY)),
        Measure("shm latency, blocking", ours("latency --bytes 64 --poll block", LATENCY, transport="shm"), *either("<= 1.3", shm("pingpong", None, LATENCY), shm("pingpong --spin -1", None, LATENCY))),
        Measure("memory of a server for an idle connection, 512 at once", Idle("<= 64")),
        Measure("io_uring beside epoll, stream", *(Uring(f"stream --way {way}") for way in WAYS)),
        Measure("io_uring beside epoll, ping-pong", *(Uring(f"pingpong --way {way}", LATENCY) for way in WAYS)),
    ]


def chosen_points(sweep, short):
    """All of its points; `short`: the ends of each series only."""
    points = sweep.points()
    if short:
        ends = {series: (taken[0][0], taken[-1][0]) for series, taken in sweep.series.items()}
        points = [point for point in points if point[1] in ends[point[0]]]
    return points


def run_sweep(sweep, rounds, seconds, short):
    """A row for each point."""
    points = chosen_points(sweep, short)
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
        figure = amount(row) if "median" in row else f"left out: {row['left_out']}" if "left_out" in row else ""
        verdict = {True: "met", False: "missed", None: "not measured"}[row["met"]]
        bar = f"{row['bar']}: {verdict}" if row["bar"] else ""
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


def tables(rows, swept):
    """All of them."""
    return "\n\n".join(([table(rows)] if rows else []) + [sweep_table(*both) for both in swept])


def cpu():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def pattern(text):
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"expected a regular expression, found {text!r}: {error}") from error


def flags():
    parser = argparse.ArgumentParser(
        prog="scripts/bench.sh",
        allow_abbrev=False,
        description="Measures Windlass beside bare loops and other programs, in turns on this machine.",
        epilog="Nothing else should run meanwhile. Exit codes: 2 wrong usage, 1 a measurement that failed.",
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender [%(default)s]")
    parser.add_argument("--seconds", type=float, default=2, help="how long each of them is measured for [%(default)s]")
    parser.add_argument(
        "--only",
        action="append",
        type=pattern,
        default=[],
        metavar="REGEX",
        help="measures and sweeps in whose name it is found; may be given several times [all]",
    )
    parser.add_argument("--peers", action="store_true", help="beside Open MPI, gloo, torch.distributed.rpc, MXNet's kvstore and redis, too")
    parser.add_argument("--sweep", action="store_true", help="by size, workers, servers, wire and consistency, too")
    parser.add_argument(
        "--record", action="store_true", help="write benches/record/DATE-CPU.json and .md, too, and plots of the sweeps; with --only DATE-CPU-part"
    )
    parser.add_argument("--smoke", action="store_true", help="everything once and short, into target/smoke: the figures mean nothing")
    parser.add_argument("--list", action="store_true", help="say what would be measured, with its bars, and how long that would take")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("expected at least one round, and some time")
    if options.smoke:
        options.rounds, options.seconds, options.peers, options.sweep = 1, 0.1, True, True
    Measure.strict = options.smoke

    def chosen(things):
        return [thing for thing in things if not options.only or any(only.search(thing.name) for only in options.only)]

    options.measures = chosen(measures() + (bench_peers.measures(Measure) if options.peers else []))
    options.sweeps = chosen(bench_sweeps.sweeps() if options.sweep else [])
    if not options.measures and not options.sweeps:
        patterns = ", ".join(repr(only.pattern) for only in options.only)
        parser.error(f"nothing that is measured has {patterns} in its name: --list has the names, with --peers and --sweep all")
    return options


def duration(options):
    """How long all of it takes, about, in words."""
    rounds = sum(measure.takes(options.seconds) for measure in options.measures)
    points = itertools.chain(*(chosen_points(sweep, options.smoke) for sweep in options.sweeps))
    rounds += sum(contender.takes(options.seconds) for _, _, contender in points)
    minutes = max(1, round(options.rounds * rounds / 60))
    return f"{plural(options.rounds, 'round')} of {options.seconds:g} s: about {plural(minutes, 'minute')}"


def plural(count, what):
    return f"{count} {what}{'' if count == 1 else 's'}"


def listed(options):
    """What would be measured."""
    for measure in options.measures:
        print(measure.name)
        for part in getattr(measure, "measures", [measure]):
            for contender in part.contenders:
                print(f"    {contender.name()}{f': {contender.bar}' if contender.bar else ''}")
        if isinstance(measure, Growth):
            print(f"    the largest of these ratios to the smallest: {measure.bar}")
    for sweep in options.sweeps:
        print(f"{sweep.name}: {', '.join(sweep.series)}")
    print(duration(options))


def timed(name, run, *arguments):
    """What `run` returns; a program of ours that fails ends everything, and nothing is recorded."""
    started = time.monotonic()
    try:
        rows = run(*arguments)
    except FAILURES as error:
        sys.exit(f"bench.sh: {name}: {error}")
    print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return rows


def main():
    options = flags()
    if options.list:
        return listed(options)
    rounds, seconds = options.rounds, options.seconds
    print(duration(options), file=sys.stderr)
    rows, swept = [], []
    try:
        for measure in options.measures:
            rows += timed(measure.name, measure.run, rounds, seconds)
        for sweep in options.sweeps:
            swept.append((sweep, timed(sweep.name, run_sweep, sweep, rounds, seconds, options.smoke)))
    except SystemExit:
        print(tables(rows, swept))  # what was measured until then
        raise

    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    load = pathlib.Path("/proc/loadavg").read_text().split()[0]
    commit = output("git", "rev-parse", "--short", "HEAD") or "unknown"
    changed = " with changes" if output("git", "status", "--porcelain") else ""
    heading = (
        f"{today}, {cpu()}, {os.cpu_count()} CPUs, Linux {os.uname().release}, load {load} at the end, "
        f"{plural(rounds, 'round')} of {seconds:g} s in turns\n"
        f"`{shlex.join(['scripts/bench.sh', *sys.argv[1:]])}`, commit {commit}{changed}, {output('rustc', '--version')}\n"
        f"TCP under {usual_congestion()}: ours and the bare loops by TCP_CONGESTION, iperf3 by -C, peers by a library that is loaded "
        "before them (benches/peers/congestion.c); values of torch.distributed.rpc go through shared memory, gloo has TCP alone"
    )
    text = f"{heading}\n\n{tables(rows, swept)}\n"
    print(text, end="")
    if options.record or options.smoke:
        folder = pathlib.Path("target/smoke" if options.smoke else "benches/record")
        part = "-part" if options.only else ""
        record(folder, heading, f"{today}-{cpu()}{part}", text, rows, swept)


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
