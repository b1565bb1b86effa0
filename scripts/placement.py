#!/usr/bin/env python3
"""The alternative to src/types/partition.rs that was measured and not taken (ARCHITECTURE.md, "Deviations").

A ring of virtual nodes with bounded load (Mirrokni, Thorup, Zadimoghaddam, SODA 2018), cap = ceil(buckets/shards) + 1.
Prints how many buckets move when the n-th shard is added, as a multiple of buckets/n, for n = 3 to 32.
"""

from bisect import bisect

MASK = (1 << 64) - 1


def mix(x):
    """SplitMix64's finaliser."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def place(buckets, shards, virtual_nodes):
    """The owner of each bucket, and the load of each shard."""
    ring = sorted((mix(mix(s * 1000003 + 1) ^ v), s) for s in range(shards) for v in range(virtual_nodes))
    points = [point for point, _ in ring]
    cap = -(-buckets // shards) + 1
    load, owner = [0] * shards, [0] * buckets
    hashed = sorted((mix(b ^ 0x5555), b) for b in range(buckets))
    for point, bucket in hashed:
        at = bisect(points, point)
        while load[ring[at % len(ring)][1]] >= cap:
            at += 1
        owner[bucket] = ring[at % len(ring)][1]
        load[owner[bucket]] += 1
    return owner, load


def main():
    print("buckets  virtual nodes  moved: mean  worst  over 1.2  largest spread of load")
    for buckets in (256, 1000, 4096):
        for virtual_nodes in (64, 256):
            before, _ = place(buckets, 2, virtual_nodes)
            ratios, spreads = [], []
            for shards in range(3, 33):
                after, load = place(buckets, shards, virtual_nodes)
                moved = sum(a != b for a, b in zip(before, after))
                ratios.append(moved * shards / buckets)
                spreads.append(max(load) - min(load))
                before = after
            mean, over = sum(ratios) / len(ratios), sum(r > 1.2 for r in ratios)
            print(f"{buckets:7}  {virtual_nodes:13}  {mean:11.2f}  {max(ratios):5.2f}"
                  f"  {over:2} of {len(ratios)}  {max(spreads):22}")


main()
