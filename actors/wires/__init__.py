"""What passes messages between two actors: framing, bounded mailboxes, and what carries them.

messages, frames     one message: header and raw tensors, no pickle
mailbox              bounded, ordered boxes with credits and statistics
local_wire,
zmq_wire, ray_wire   what carries them: in one process, over ZeroMQ, over Ray itself
carrier              what carries the tensors: with the header, torch.distributed, CUDA IPC
link                 one directed connection, as the driver plans it
doorbell             what a loop with many links waits at
"""
