"""Actors that belong together: placed, wired to each other, watched and taken down, on Ray.

placement            where actors live, and on which of the cluster's resources
within               room in a placement group of their own, or in one that is there
member               an actor with boxes, errands and checkpoints
group                who places, wires and ends many
part_writer          an actor's parts of checkpoints, written beside its work
"""
