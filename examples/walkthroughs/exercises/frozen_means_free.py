"""The exercises of "Frozen means free"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from examples.walkthroughs.checking import Checker, Exercise

# --------------------------------------------------------------------------------------------------
# 1. The products of a step
# --------------------------------------------------------------------------------------------------


def _flops(
    products: Callable[[int, Sequence[bool]], int],
) -> Callable[[Sequence[int], int, Sequence[bool]], int]:
    """Return a function that adds up FLOPs, from the number of products of each layer."""

    def flops(widths: Sequence[int], rows: int, trained: Sequence[bool]) -> int:
        sizes = enumerate(pairwise(widths))
        return sum(2 * rows * a * b * products(i, trained) for i, (a, b) in sizes)

    return flops


product_flops = _flops(lambda i, trained: 1 + trained[i] + any(trained[:i]))

# --------------------------------------------------------------------------------------------------
# 4 and 5. Bytes
# --------------------------------------------------------------------------------------------------


def _state(trained: int, full: float, lora: float) -> dict[str, float]:
    return {"trained": trained, "full, GiB": full, "LoRA, MiB": lora}


def _saved(full: int, biases: int, last_layer: int) -> dict[str, int]:
    return {"full": full, "biases": biases, "last layer": last_layer}


TRAINED = 32 * 2 * 8 * (4096 + 4096)

check = Checker(
    {
        1: Exercise(
            product_flops,
            trials=[
                ([256, 256, 256, 256, 256], 64, [True, True, True, True]),
                ([4, 3, 5, 2], 7, [False, True, False]),
                ([6, 4, 3], 2, [False, False]),
                ([2, 5, 3, 4], 3, [True, False, False]),
            ],
            slips={
                "No layer before the lowest trained one needs a gradient, so the product for its "
                "dx is not done.": _flops(
                    lambda i, trained: 1 + trained[i] + any(trained[: i + 1])
                ),
                "This has three products for each trained layer and one for each frozen one. But "
                "the gradient goes through a frozen layer if a layer before it is trained, and a "
                "layer needs dx only if there is one.": _flops(
                    lambda i, trained: 1 + 2 * trained[i]
                ),
                "This counts dx in every layer. It is needed only if a layer *before* it is "
                "trained.": _flops(lambda i, trained: 2 + trained[i]),
                "The gradient comes from the loss, at the end: dx is needed if a layer *before* "
                "this one is trained, and not one after it.": _flops(
                    lambda i, trained: 1 + trained[i] + any(trained[i + 1 :])
                ),
                "The product for dW is not done if the weight is frozen.": _flops(
                    lambda i, trained: 2 + any(trained[:i])
                ),
                "The forward pass runs through frozen layers too: each has a product.": _flops(
                    lambda i, trained: 2 * trained[i] + any(trained[:i])
                ),
                "This is the backward pass alone; a step has a forward pass too.": _flops(
                    lambda i, trained: trained[i] + any(trained[:i])
                ),
                "Each entry of a product is a sum of products: a multiplication and an addition, "
                "which are 2 FLOPs.": lambda *arguments: product_flops(*arguments) // 2,
                "The number of rows is missing: each row of x is multiplied by the weight.": (
                    lambda widths, rows, trained: product_flops(widths, 1, trained)
                ),
            },
        ),
        2: Exercise(
            lambda layers: (2 * layers - 1) / (3 * layers - 1),
            trials=[(4,), (1,), (2,), (100,)],
            slips={
                "That is what a layer has in the middle of a network. The first layer never has "
                "the product for dx, which counts if there are few layers.": lambda layers: 2 / 3,
                "In full training you left out dx of the first layer, and it is not done with "
                "LoRA either.": lambda layers: 2 * layers / (3 * layers - 1),
                "With LoRA you left out dx of the first layer, and it is not done in full training "
                "either.": lambda layers: (2 * layers - 1) / (3 * layers),
                "This share is that of one product in each layer. One is what LoRA saves (dW); "
                "what is left is the rest.": lambda layers: layers / (3 * layers - 1),
                "This is right for four layers only. Count for any number of them.": (
                    lambda layers: 7 / 11
                ),
                "This is full training divided by LoRA, and the question is the other way "
                "round.": lambda layers: (3 * layers - 1) / (2 * layers - 1),
            },
        ),
        3: Exercise(
            lambda layers, adapted: layers - 1 - adapted,
            trials=[(4, 0), (4, 3), (6, 2), (1, 0)],
            slips={
                "This is one too many: the adapter needs the gradient at the *output* of its "
                "layer, so it does not go through the frozen weight of that layer.": (
                    lambda layers, adapted: layers - adapted
                ),
                "This is the number of layers before the adapted one. The gradient comes from the "
                "loss, through those after it.": lambda layers, adapted: adapted,
                "This does not depend on where the adapter is, and the gradient only goes as far "
                "as the adapter.": lambda layers, adapted: layers - 1,
                "There are two products with a trained weight. The weights here are frozen, so "
                "there is only dx.": lambda layers, adapted: 2 * (layers - 1 - adapted),
                "It is not zero, unless the adapter is on the last layer: the gradient has to go "
                "through each frozen weight after the adapter.": lambda layers, adapted: 0,
                "This counts one for every layer, even before the adapter, where no gradient is "
                "needed.": lambda layers, adapted: layers,
            },
        ),
        4: Exercise(
            _state(TRAINED, 12 * 7e9 / 2**30, 12 * TRAINED / 2**20),
            tolerance=1e-2,
            slips={
                "This is half of what LoRA trains: there are two matrices in each layer, and each "
                "has an A *and* a B.": _state(TRAINED // 2, 12 * 7e9 / 2**30, 12 * TRAINED / 2**21),
                "This counts 16 bytes for each trained parameter. The parameter itself is among "
                "them, and it is neither gradient nor state.": _state(
                    TRAINED, 16 * 7e9 / 2**30, 16 * TRAINED / 2**20
                ),
                "This counts 8 bytes for each trained parameter: one of its gradient and the two "
                "averages of Adam is missing.": _state(
                    TRAINED, 8 * 7e9 / 2**30, 8 * TRAINED / 2**20
                ),
                "These are GB and MB, with powers of 1000. A GiB is 2**30 bytes, and a MiB is "
                "2**20.": _state(TRAINED, 12 * 7, 12 * TRAINED / 1e6),
                "This is one layer of the 32.": _state(
                    TRAINED // 32, 12 * 7e9 / 2**30, 12 * TRAINED / 2**25
                ),
                "This counts 2 bytes for each number. A number in float32 has 4.": _state(
                    TRAINED, 6 * 7e9 / 2**30, 6 * TRAINED / 2**20
                ),
                "This is 4 bytes for each trained parameter: the gradient alone. Adam stores two "
                "numbers besides.": _state(TRAINED, 4 * 7e9 / 2**30, 4 * TRAINED / 2**20),
            },
        ),
        5: Exercise(
            _saved(7, 4, 2),
            slips={
                "In `full` there is one too many: the input of the first layer is the batch, which "
                "exists anyway, so the receipt lists it separately.": _saved(8, 4, 2),
                "The gradient of a bias is a sum of g: a linear layer of which only the bias "
                "trains needs no input.": _saved(7, 7, 2),
                "A GELU has no parameters, but the gradient goes through it, and its slope depends "
                "on its input.": _saved(7, 1, 2),
                "The loss saves the prediction: its gradient depends on it.": _saved(6, 3, 1),
                "There is no GELU after the last layer: four layers have three between "
                "them.": _saved(8, 5, 3),
                "With only the last layer trained, no gradient goes back to the GELUs, so they "
                "save nothing.": _saved(7, 4, 5),
                "For the last layer to learn, no layer before it has to save anything.": _saved(
                    7, 4, 7
                ),
                "The last layer trains its weight: it needs its own input, and the loss needs the "
                "prediction.": _saved(7, 4, 1),
            },
        ),
    }
)
