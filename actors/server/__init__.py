"""A parameter server with asynchronous workers, and a solver whose threads share their memory.

protocols            what it consumes: a server rule and a worker rule
loop, worker_loop    the order of both: a push in, orders out; a reply in, a push out
staleness,
certification        how stale a push may be; whose part of a certificate is missing
messages, exchange   what they tell each other, and as which messages of a wire
changes              a vector sent again and again: whole, or what has changed
server_runner,
worker_runner        messages into the loops, orders into messages
server_actor,
worker_actor         the thin Ray shells
server_group, watch  a server with its K workers, and who replaces one that is lost
solver_actor,
solver_group         one actor with a solver in it, and its driver
"""
