"""Windlass beside what a user would take instead: the measures of `scripts/bench.sh --peers`."""

from bench_programs import LATENCY, OPERATIONS, Allreduce, Python, Redis, either, ours, python_with, shm, tcp

MIB = 1 << 20


def measures(measure):
    """`measure` is bench.Measure."""

    def allreduce(mib, transport, bare):
        """Two workers push, and pull the sum into buffers of their own: what an allreduce does. Figures are of one rank."""
        # As many threads at work as an allreduce of two ranks has.
        job = bsp(mib) + (" --threads 2" if transport == "shm" else "")
        mpi = Allreduce(mib * MIB, transport, bar=">= 1.5" if transport == "shm" else None)
        return measure(f"allreduce {mib}M over {transport}", ours(job, scale=0.5, transport=transport), *bare, mpi, gloo(mib))

    def half(mib):
        """The same over TCP with half the bytes of ours."""
        job = f"{bsp(mib)} --wire fp16"
        return measure(f"allreduce {mib}M over tcp, fp16", ours(job, scale=0.5), *bare(mib, None), Allreduce(mib * MIB, "tcp"), gloo(mib))

    def bsp(mib):
        return f"push-pull --workers 2 --consistency bsp --window 1 --bytes {mib}M --table-bytes {mib}M"

    def gloo(mib):
        return Python("torch", "gloo.py", f"--bytes {mib * MIB}")

    def bare(mib, bar=">= 0.85"):
        loop = f"reduce --senders 2 --bytes {mib * MIB} --table {mib * MIB}"
        return either(bar, tcp(loop), tcp(f"{loop} --spin 1"))

    large, small = f"--bytes {16 * MIB}", "--bytes 64"
    return [
        allreduce(16, "shm", [shm(f"reduce --bytes {16 * MIB}")]),
        allreduce(64, "shm", [shm(f"reduce --bytes {64 * MIB}")]),
        allreduce(16, "tcp", bare(16)),
        allreduce(64, "tcp", bare(64)),
        half(16),
        half(64),
        measure(
            "push-pull 16M beside peers",
            ours("push-pull --bytes 16M"),
            Python("mxnet", "mxnet_kvstore.py", large, bar=">= 3"),
            Python("torch", "torch_rpc.py", large, bar=None if python_with("mxnet") else ">= 3"),
        ),
        measure(
            "latency beside peers",
            ours("latency --bytes 64 --poll block", LATENCY),
            Python("mxnet", "mxnet_kvstore.py", small, LATENCY),
            Python("torch", "torch_rpc.py", small, LATENCY),
        ),
        measure("push 1M beside redis", ours("push --bytes 1M --table-bytes 4M"), Redis("set", MIB, 4)),
        measure("pull 1M beside redis", ours("pull --bytes 1M --table-bytes 4M"), Redis("get", MIB, 4)),
        measure("pushes of 64 B beside redis", ours("push --bytes 64 --window 64", OPERATIONS), Redis("set", 64, 64, OPERATIONS)),
    ]
