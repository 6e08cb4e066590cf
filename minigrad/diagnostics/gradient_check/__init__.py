"""gradcheck and check_vjp: is a gradient right? Three answers, each with a reason.

The files, in the order of the path from a call to a verdict:

    check               gradcheck and check_vjp; each element is moved and compared
    checked_function    f as a function of float arrays: its values, its gradients by every path
                        that leads to them, and flaws of their arrays; what all kinds of f share
    tensor_function     f as a function of Tensors, or a Module
    array_pair          f as a function of arrays, with another that computes its gradient
    foreign_function    f as a function of PyTorch or JAX
    problem             what is compared, for order 1 and for order 2, and how much gradients change
                        with other roundings
    tolerances          all thresholds with their reasons; what a right gradient may be off by
    finite_differences  moves, quotients along them with error bars, and their verdict: agree,
                        disagree or cannot tell, and the reason
    report              what was found, as text and as a picture
"""
