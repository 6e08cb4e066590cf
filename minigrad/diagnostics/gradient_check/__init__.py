"""gradcheck and check_vjp: is a gradient right? There are three verdicts, each with a reason.

In the order from a call to a verdict: check (the functions to call), checked_function, with a file
for each kind of function (tensor_function, array_pair and foreign_function), problem,
finite_differences, tolerances, report (with heat_map).
"""
