"""The algorithms: pure torch and numpy, one paper, one file; they know neither Ray nor actors.

pipeline         the methods of a pipeline: BP, GPipe, 1F1B, DDG, FR, ADL, DSP, DNI, DGL
averaging        the methods of replicas that average: mini-batch SGD, Local SGD, DaSGD
stage            the computation of one stage under all of them
server           the methods of a parameter server: rules of the server and of its workers
shared_memory    AsySVRG by threads on one w
"""
