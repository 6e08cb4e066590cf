"""gradcheck and check_vjp: is a gradient right? Three answers, each with a reason.

In the order of the path from a call to a verdict: check (the functions that are called),
checked_function, with a file for each kind of function (tensor_function, array_pair and
foreign_function), problem, finite_differences, tolerances, report (with heat_map).
"""
