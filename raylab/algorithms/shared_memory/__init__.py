"""AsySVRG in shared memory (HUO algorithm 1): threads, one w, no locks."""
