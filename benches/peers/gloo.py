"""all_reduce of fp32 sums by torch.distributed over gloo, 2 processes on loopback; bytes that one of them had reduced in a second.

    python3 gloo.py [--bytes N] [--seconds S]
"""

import torch
import torch.distributed

import processes

RANKS = 2


def rank_of(rank, queue, address, options):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=RANKS)
    values = torch.zeros(options.bytes // 4)

    def agree(more):
        flag = torch.tensor([int(more)])
        torch.distributed.broadcast(flag, 0)
        return bool(flag.item())

    figures = processes.repeat(options.seconds, lambda: torch.distributed.all_reduce(values), agree)
    torch.distributed.barrier()
    if rank == 0:
        queue.put(figures)


if __name__ == "__main__":
    given = processes.flags()
    processes.show("gloo", processes.together(rank_of, RANKS, f"tcp://127.0.0.1:{processes.free_port()}", given), given)
