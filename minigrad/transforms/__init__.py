"""Functions of functions: gradients, Jacobians, Hessians, and products with these.

`minigrad.grad` differentiates a result. A transform takes the function itself:

    value, gradient = value_and_grad(lambda x: x**3)(2.0)           # 8 and 12
    H = hessian(lambda x: (x**3).sum())(np.array([1.0, 2.0]))       # [[6, 0], [0, 12]]

Two properties make transforms right when they are nested.

- f runs on inputs of its own: the same values at new nodes of the graph, linked to the old ones.
  So a tensor that is an argument of f and the same tensor that f closes over are two things, and
  the derivative by one does not leak into that by the other (perturbation confusion, Siskind and
  Pearlmutter, 2005), while an outer derivative passes through both.
- A result is a part of the graph if something outside can ask for its derivative: grad mode is on,
  and the result depends on a node that is older than f's inputs, be it an argument that requires a
  gradient, a tensor that f closes over, or the input of an outer transform. Else the result is
  detached, and the backward pass is the plain one, on arrays. So to differentiate a model by its
  input alone, do it under `no_grad()`.

`jvp`, `hvp` and `jacfwd` run f in forward mode. There is no graph behind f's inputs then, and what
f itself differentiates by them it must differentiate by a transform, not by `grad`.

The arguments that f is differentiated by are Tensors, arrays or numbers, of floats, or containers
of these (see `minigrad.containers`), and the derivatives have the structure of the arguments:

    def loss(weights, x):
        return ((x @ weights["w"] + weights["b"]) ** 2).mean()

    value, gradient = value_and_grad(loss)({"w": w, "b": b}, x)     # gradient["w"], gradient["b"]

f receives a Tensor for each leaf of them and for any other positional array of floats; all other
arguments, and those passed by keyword, it receives as they are. A Module it receives itself, with
its trainable parameters at new nodes while f runs; their derivatives are a dict by their names.
These parameters require a gradient, so an outer derivative could be asked for: where none is, as in
a training loop, `no_grad()` around the call saves the time to record it.

A Python float becomes float32, as in `minigrad.tensor(2.0)`, so that it computes in the precision
of the weights that it meets; np.float64(2.0) and `tensor(2.0, dtype="float64")` are float64.

What f's result does not depend on has derivative zero. So f may return a plain float or array as a
constant; it then runs once more, watched, and it is an error if a value that depends on the inputs
left the graph on the way, as with `float(x)` or `x.detach()`, because the zeros would be wrong. No
tensor's `.grad` or `requires_grad` is changed.

In `derivatives` are the transforms, in `function_call` the arguments of f, and in `function_run` a
run of f and the passes back through its graph.
"""

from minigrad.transforms import derivatives
from minigrad.transforms.derivatives import *

__all__ = derivatives.__all__
