"""The stages of one network: features up, delayed gradients down.

protocols            what a pipeline consumes: a stage rule
program, stage       the loop of a stage: events in, instructions out
source, boxes        batches into messages; the boxes of a stage
runner, snapshot     instructions into calls of the rule; what goes into a checkpoint
in_process           K stages in one thread: the same loops without Ray
stage_actor,
supervisor           the thin Ray shell, and K of them
"""
