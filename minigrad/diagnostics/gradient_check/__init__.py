"""gradcheck and check_vjp: is a gradient right? There are three verdicts, each with a reason.

In the order from a call to a verdict: check (the functions to call), checked_function, functions
(a class for each kind of function), problem, finite_differences, tolerances, report.
"""
