"""What passes messages between two actors: framing, bounded mailboxes, and what carries them.

messages, frames,
elements             one message: header and raw tensors, no pickle
mailbox              bounded, ordered boxes with credits and statistics
local_wire,
zmq_wire, ray_wire   what carries them: in one process, over ZeroMQ, over Ray itself
node_memory          what takes large tensors from process to process of a node beside ZeroMQ
carrier              what carries the tensors: with the header, torch.distributed, CUDA IPC
link                 one directed connection, as the driver plans it
doorbell             what a loop with many links waits at
"""
