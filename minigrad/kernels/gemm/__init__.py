"""The matrix product, in the words of BLIS (Van Zee and van de Geijn, 2015).

    dispatch       `matmul`, the checked entry, and which loops a product takes
    microkernel    the register tile, written as vector instructions: the innermost loop
    packing        copying blocks into panels that the micro-kernel reads straight through
    macrokernel    the five loops around the micro-kernel, one for each level of cache
    blocking       the sizes of the caches, and the block sizes that follow from them
    products       the functions that are compiled: arrays in, addresses to the macro-kernel
    skinny         a large matrix times a few columns, as in LoRA's x A^T, or a few rows times it
    prepacked      a matrix that is packed once and multiplied with often

Read `microkernel`, `packing` and `macrokernel` first, in this order.
"""

from minigrad.kernels.gemm import prepacked
from minigrad.kernels.gemm.dispatch import PRODUCTS, matmul

__all__ = ["PRODUCTS", "matmul", "prepacked"]
