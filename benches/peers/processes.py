"""What the peers share: flags, a job of several processes on this machine, and one line of JSON."""

import argparse
import json
import multiprocessing
import socket
import statistics
import time


def flags():
    """--bytes of one operation, --seconds to measure for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=int, default=16 << 20)
    parser.add_argument("--seconds", type=float, default=1)
    return parser.parse_args()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def repeat(seconds, operation, agree=lambda more: more):
    """Operations in a second, and the median time of one in seconds, after one that is not counted; `agree` makes all processes stop
    after the same one."""
    operation()
    start, taken, more = time.perf_counter(), [], True
    while more:
        before = time.perf_counter()
        operation()
        taken.append(time.perf_counter() - before)
        more = agree(time.perf_counter() - start < seconds)
    return len(taken) / (time.perf_counter() - start), statistics.median(taken)


def together(role, count, *arguments):
    """Runs role(rank, queue, *arguments) in `count` new processes; what one of them put into the queue."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=role, args=(rank, queue, *arguments), daemon=True) for rank in range(count)]
    for process in processes:
        process.start()
    try:
        return queue.get(timeout=100)
    finally:
        for process in processes:
            process.join(10)
            process.kill()


def show(op, figures, options):
    """`figures` are those of `repeat`."""
    rate, median = figures
    print(json.dumps({"op": op, "gbytes_per_second": rate * options.bytes / 1e9, "p50_us": 1e6 * median}))
