"""gradcheck: is a gradient right? Three answers, each with a reason.

The files, in the order of the path from a call to a verdict:

    check               gradcheck and assert_gradients; each element is moved and compared
    checked_function    f as a function of float arrays: its values, its gradients by every path
                        that leads to them, and flaws of their arrays
    problem             what is compared, for order 1 and for order 2, and how much gradients change
                        with other roundings
    tolerances          all thresholds with their reasons; what a right gradient may be off by
    finite_differences  moves, quotients along them with error bars, and their verdict: agree,
                        disagree or cannot tell, and the reason
    report              what was found, as text and as a picture
"""
