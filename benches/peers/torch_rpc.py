"""A parameter server as torch.distributed.rpc makes one: a call takes a gradient to the server, which adds it to its tensor and
answers with the sum. One worker, one server on loopback; bytes of one direction. Values go through shared memory: TensorPipe takes it
by itself where both ends are on one host.

    python3 torch_rpc.py [--bytes N] [--seconds S]
"""

import torch
import torch.distributed.rpc as rpc

import processes

parameters = None


def push_pull(gradient):
    """At the server."""
    global parameters
    parameters = gradient.clone() if parameters is None else parameters.add_(gradient)
    return parameters


def rank_of(rank, queue, address, options):
    torch.set_num_threads(1)
    rpc.init_rpc(
        ("server", "worker")[rank],
        rank=rank,
        world_size=2,
        rpc_backend_options=rpc.TensorPipeRpcBackendOptions(init_method=address, rpc_timeout=60),
    )
    if rank == 1:
        gradient = torch.ones(options.bytes // 4)
        figures = processes.repeat(options.seconds, lambda: rpc.rpc_sync("server", push_pull, args=(gradient,)))
        queue.put(figures)
    rpc.shutdown()


if __name__ == "__main__":
    given = processes.flags()
    processes.show("torch_rpc", processes.together(rank_of, 2, f"tcp://127.0.0.1:{processes.free_port()}", given), given)
