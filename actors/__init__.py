"""The mechanism: actors, mailboxes, wires, and the loops of a pipeline and a parameter server.

It moves tensors and runs loops; what is computed is behind the protocols of
`actors.pipeline.protocols` and `actors.server.protocols`. Nothing in here imports raylab.

    pipeline, server     the two wings; neither knows the other
    groups               actors that belong together: placed, wired, watched, taken down
    wires                messages between two of them
    units, errors,
    checkpoint_plan      what all of them speak of
"""
