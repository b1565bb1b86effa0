"""push and pull of one fp32 array through MXNet's kvstore, which is ps-lite: a scheduler, a server and a worker on loopback; the
server, which has no optimizer, keeps what is pushed. Bytes of one direction.

    python3 mxnet_kvstore.py [--bytes N] [--seconds S]

MXNet 1.9.1, the last, wants numpy < 1.24.
"""

import os

import processes

ROLES = ("scheduler", "server", "worker")


def rank_of(rank, queue, port, options):
    os.environ.update({
        "DMLC_ROLE": ROLES[rank],
        "DMLC_PS_ROOT_URI": "127.0.0.1",
        "DMLC_PS_ROOT_PORT": str(port),
        "DMLC_NODE_HOST": "127.0.0.1",
        "DMLC_NUM_SERVER": "1",
        "DMLC_NUM_WORKER": "1",
        "OMP_NUM_THREADS": "1",
    })
    # At this import the scheduler and the server begin to serve, and end with the job.
    import mxnet

    store = mxnet.kvstore.create("dist_sync")
    shape = (options.bytes // 4,)
    gradient, parameters = mxnet.nd.ones(shape), mxnet.nd.zeros(shape)
    store.init(0, mxnet.nd.zeros(shape))

    def push_pull():
        store.push(0, gradient)
        store.pull(0, out=parameters)
        parameters.wait_to_read()

    queue.put(processes.repeat(options.seconds, push_pull))


if __name__ == "__main__":
    given = processes.flags()
    processes.show("mxnet_kvstore", processes.together(rank_of, len(ROLES), processes.free_port(), given), given)
