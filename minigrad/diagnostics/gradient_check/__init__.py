"""gradcheck and check_vjp: is a gradient right? There are three verdicts, each with a reason.

In the order from a call to a verdict: check (the functions to call), checked_function, with a file
for two kinds of functions (framework_function and array_pair), problem, finite_differences,
tolerances, report (with heat_map).
"""
