"""Function transforms: gradients, Jacobians, Hessians, and their products with vectors.

`minigrad.grad` differentiates a result. A transform differentiates a function:

    value, gradient = value_and_grad(lambda x: x**3)(2.0)           # 8 and 12
    H = hessian(lambda x: (x**3).sum())(np.array([1.0, 2.0]))       # [[6, 0], [0, 12]]

Two properties make nested transforms correct.

- f runs on its own inputs: the same values at new nodes of the graph, linked to the old nodes. A
  tensor may be an argument of f, and f may also close over the same tensor. The derivative with
  respect to one use does not mix with the other (perturbation confusion, Siskind and Pearlmutter,
  2005), and an outer derivative includes both.
- A result is a part of the graph if something outside may need its derivative. This is so if grad
  mode is on, and the result depends on a node that is older than f's inputs: an argument that
  requires a gradient, a tensor that f closes over, or the input of an outer transform. In all other
  cases the result is detached, and the backward pass computes with arrays. So use `no_grad()` to
  differentiate a model with respect to its input only.

`jvp`, `hvp` and `jacfwd` run f in forward mode, in which f's inputs have no graph. If f itself
differentiates with respect to its inputs, it must use a transform, not `grad`.

The arguments to differentiate are Tensors, arrays or numbers, all of floats, or containers of these
(see `minigrad.containers`). The derivatives have the structure of the arguments:

    def loss(weights, x):
        return ((x @ weights["w"] + weights["b"]) ** 2).mean()

    value, gradient = value_and_grad(loss)({"w": w, "b": b}, x)     # gradient["w"], gradient["b"]

f receives a Tensor for each leaf of these arguments, and for each other positional array of floats.
All other arguments, and keyword arguments, are passed unchanged. A Module is passed itself; while f
runs, its trainable parameters are at new nodes. Their derivatives are a dict by parameter names.
The parameters require a gradient, so the result is recorded for an outer derivative. If you do not
need one, as in a training loop, call the transform under `no_grad()`, which is faster.

A Python float becomes float32, as in `minigrad.tensor(2.0)`, to match the usual dtype of weights.
np.float64(2.0) and `tensor(2.0, dtype="float64")` are float64.

If f's result does not depend on an argument, the derivative is zero. No `.grad` and no
`requires_grad` of a tensor is changed.

`derivatives` has the transforms. `function_call` handles the arguments of f, runs f, and
backpropagates through its graph. `forward_mode` computes tangents together with the values.
`checkpoint` runs f again in the backward pass, instead of saving its activations.
"""

from minigrad.transforms.derivatives import *
