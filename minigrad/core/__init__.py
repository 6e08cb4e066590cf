"""The engine: tensors, the graph that ops record, and backpropagation through this graph.

The engine does not depend on any particular op or layer. In reading order:

    tensor       an array, and its node in the graph
    op           an op: its forward, and a vector-Jacobian product (VJP) for each input
    codegen      the call of an op, as a function written for that op; the dtype of its result
    node         the graph, and the order in which a backward pass visits it
    backward     the backward pass
    grad_mode    whether this thread records a graph
    observers    watching calls of ops and backward passes, for diagnostics and pictures
    blocked_sum  sums of many rows with small rounding errors
"""
