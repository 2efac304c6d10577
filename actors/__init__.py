"""The mechanism: actors, mailboxes, wires, and the loops of a pipeline and a parameter server.

It moves tensors and runs loops; what is computed is behind the protocols of
`actors.protocols` and `actors.server_protocols`. Nothing in here imports raylab.

    messages, frames         one message: header and raw tensors, no pickle
    mailbox                  bounded, ordered boxes with credits and statistics
    local_wire, zmq_wire     what carries them: in one process, ZeroMQ; ray_wire: Ray itself
    link, member, group      a connection; an actor with boxes; who places, wires and ends many

    protocols                what a pipeline consumes: a stage rule
    program, stage           the loop of a stage: events in, instructions out
    source, runner           batches into messages; instructions into calls of the rule
    stage_actor, supervisor  the thin Ray shell, and K of them

    server_protocols         what a parameter server consumes: a server rule and a worker rule
    server, server_worker    the order of both: a push in, orders out; a reply in, a push out
    server_wire              what they tell each other, as messages
    server_runner,
    worker_runner            messages into the loops, orders into messages
    server_actor,
    worker_actor             the thin Ray shells
    server_group,
    server_watch             a server with its K workers, and who replaces one that is lost
"""
