"""The computation of one stage: forward, backward, update, under every pipeline method."""
