"""A private network of a given rate, and what trains on it.

lan.py              addresses, and the commands that build and shape it
own_namespaces.py   what a program needs to have namespaces of its own, and how it gets them
flat_model.py       the modelled network: one flat parameter, naps for computing
worker.py           a worker process: raylab's rule and torch's methods, on gloo
torchft_worker.py   the same answers from torchft; run by an interpreter that has it
crew.py             worker processes on the hosts, all told the same
ray_nodes.py        Ray nodes on the hosts
ray_driver.py       the trainer on them as a user runs it
serving.py          the frame of a worker process
session.py          the benchmark itself
outcome.py          predicted and measured, side by side
"""
