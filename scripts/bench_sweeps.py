"""How Windlass behaves as one thing grows: the sweeps of `scripts/bench.sh --sweep`.

A sweep has series, and each series a point for each x; all points are measured once in every round.
"""

import dataclasses

from bench_programs import BARE, LATENCY, RATE, Contender, ours, shm, tcp

KIB, MIB = 1 << 10, 1 << 20
SIZES = [64, 512, 4 * KIB, 32 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB]


@dataclasses.dataclass
class Sweep:
    name: str
    x: str
    """What grows."""
    unit: str
    series: dict[str, list[tuple[int, Contender]]]

    def points(self):
        return [(series, x, contender) for series, taken in self.series.items() for x, contender in taken]


def sweeps():
    return [throughput(), latency(), workers(), variants()]


def throughput():
    """By the size of one operation, with what a bare loop reaches in pieces of that size."""

    def job(op, transport):
        return [(size, ours(f"{op} --bytes {size}", transport=transport)) for size in SIZES]

    def bare(op):
        return [(size, tcp(f"{op} --bytes {size} --piece {min(size, 256 * KIB)}")) for size in SIZES]

    series = {f"{op} over {transport}": job(op, transport) for op in ("push", "pull", "push-pull") for transport in ("tcp", "shm")}
    series |= {"bare receive and add, tcp": bare("add"), "bare stream, tcp": bare("stream")}
    series["bare add from a memfd"] = [(size, shm(f"add --bytes {size}")) for size in SIZES if size >= 256 * KIB]
    return Sweep("throughput by size", "bytes of one operation", "GB/s", series)


def latency():
    """Of one push_pull at a time, by its size."""
    sizes = [size for size in SIZES if size <= 16 * MIB]
    series = {
        f"{transport}, {poll}": [(size, ours(f"latency --bytes {size} --poll {poll}", LATENCY, transport=transport)) for size in sizes]
        for transport in ("tcp", "shm")
        for poll in ("spin", "block")
    }
    return Sweep("latency by size", "bytes of one operation", "µs", series)


def workers():
    """Of all workers together. With fewer cores than threads this shows what sharing them costs, and nothing else."""
    series = {
        f"{servers} servers, {transport}": [
            (count, ours(f"push-pull --bytes 1M --workers {count} --servers {servers}", transport=transport))
            for count in (1, 2, 4, 8)
        ]
        for servers in (1, 2, 4)
        for transport in ("tcp", "shm")
    }
    series["bare reduce, tcp (one adder; of one sender, times senders)"] = [
        (count, Contender(f"{BARE}tcp reduce --senders {count}", RATE, scale=count)) for count in (1, 2, 4, 8)
    ]
    return Sweep("scaling by workers", "workers", "GB/s", series)


def variants():
    """Wire and consistency, two workers; over shared memory values that are cast are copied, so there fp32 alone."""

    def job(consistency, wire, transport):
        command = f"push-pull --workers 2 --consistency {consistency} --wire {wire}"
        return [(size, ours(f"{command} --bytes {size}", transport=transport)) for size in (64 * KIB, MIB, 16 * MIB)]

    ways = [(wire, "tcp") for wire in ("fp32", "fp16", "bf16")] + [("fp32", "shm")]
    kinds = [(consistency, wire, transport) for consistency in ("asp", "ssp:2", "bsp") for wire, transport in ways]
    series = {f"{consistency}, {wire}, {transport}": job(consistency, wire, transport) for consistency, wire, transport in kinds}
    return Sweep("wire and consistency", "bytes of one operation", "GB/s", series)
