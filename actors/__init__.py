"""The mechanism: stages, mailboxes and wires as Ray actors.

It moves tensors and runs loops; what is computed is behind the protocols of
`actors.protocols`. Nothing in here imports raylab.

    protocols                what the mechanism consumes: a stage rule, a report sink
    messages                 one message: header and raw tensors, no pickle
    mailbox                  bounded, ordered boxes with credits and statistics
    local_wire, zmq_wire     what carries them: in one process, ZeroMQ; ray_wire: Ray itself
    stage                    the loop of a stage: events in, instructions out
    source, runner           batches into messages; instructions into calls of the rule
    stage_actor, supervisor  the thin Ray shell, and who places, wires and stops K of them
"""
