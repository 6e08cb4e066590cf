"""The matrix product, with the names that BLIS uses (Van Zee and van de Geijn, 2015).

    dispatch       `matmul`, the function to call: it checks the arrays and chooses the loops
    microkernel    the register tile, written as vector instructions: the innermost loop
    packing        copying blocks into panels, which the micro-kernel reads from start to end
    matrix_unit    products of float32 on a unit for bfloat16, for large products
    macrokernel    the five loops around the micro-kernel, which keep blocks in the caches
    blocking       the sizes of the caches, and the block sizes that follow from them
    products       the compiled functions: they turn arrays into addresses for the macro-kernel
    skinny         products of a large matrix and a few columns or rows, as in LoRA's x A^T
    prepacked      a matrix that is packed once and multiplied with often

Read `microkernel`, `packing` and `macrokernel` first, in this order.
"""

from minigrad.kernels.gemm import prepacked
from minigrad.kernels.gemm.dispatch import PRODUCTS, matmul

__all__ = ["PRODUCTS", "matmul", "prepacked"]
