"""Peers: what the library is measured against, as plain processes.

Nothing here imports the library. Read in this order::

    processes.py       starts the children, holds barriers, kills them, names what hung
    workload.py        what every peer trains (Workload) and what it answers (Sample)
    single_process.py  the plain loop
    ddp.py             two processes, gradients all-reduced
    torch_pipeline.py  GPipe and 1F1B of torch.distributed.pipelining
    ceiling.py         the same stages side by side, no messages: nobody can beat it
    raw_wires.py       microseconds per message on bare transports

`python -m benchmarks.peers --quick` runs each of them for a few batches.
"""
