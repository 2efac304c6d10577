"""Replicas in processes of their own: their seats among each other, and what they tell the driver.

collective.py   sums and lists over torch.distributed, started without waiting
board.py        a Ray actor that the replicas write on and the driver reads
"""
