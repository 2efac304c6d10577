"""The loops and algorithms of the parameter server under virtual time, with no Ray."""
