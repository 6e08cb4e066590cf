"""The memory that the graph saves for backward passes, block by block.

Several nodes save the same array, or views of it. The block of memory behind them stays as long as
one of these nodes is neither freed nor deleted. So blocks are counted, each once.

Blocks that the graph refers to, but that no op has made (parameters, and the inputs of the model),
would exist without it, and are counted separately.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minigrad.core.node import arrays_in
from minigrad.core.tensor import Tensor
from minigrad.readonly import owner_of

if TYPE_CHECKING:
    from minigrad.core.node import Node
    from minigrad.core.op import Op


@dataclass
class _Block:
    nbytes: int
    made: bool  # by an op
    holders: int = 0  # nodes


class SavedMemory:
    """The blocks that nodes save, followed from the calls that make the nodes to their end.

    `on_drop` gets the name of an op whose node is deleted without being freed.
    """

    def __init__(self, on_drop: Callable[[str], None]) -> None:
        self.alive = 0  # bytes that are saved now
        self.total = 0  # bytes that were saved so far, each block once
        self.freed = 0  # bytes of these that no node saves any more
        self.inputs = 0  # bytes of parameters and inputs that nodes refer to
        self._on_drop = on_drop
        # By the id of the array that owns the memory, for as long as that lives.
        self._made: dict[int, weakref.ref[Any]] = {}
        self._blocks: dict[int, _Block] = {}
        # By the order of a node: no two have the same, and it keeps none alive.
        self._nodes: dict[int, tuple[weakref.ref[Node], list[int]]] = {}

    def add(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Note a call of `op`, some of whose inputs may be fresh, made for this call alone."""
        fresh = [op.parameters.index(name) for name in op.fresh]
        given = {
            id(owner_of(array))
            for argnum, value in enumerate(inputs)
            if argnum not in fresh
            for array in arrays_in(value)
        }
        for array in arrays_in(result):
            self._note_made(owner_of(array), given)
        node = result.node if isinstance(result, Tensor) else None
        if node is None or node.op is not op:
            return
        keys: list[int] = []
        for _, value in op.saved_values(node, node.edges or ()):
            for array in arrays_in(value):
                block = owner_of(array)
                keys.append(id(block))
                made = self._note_made(block, given)
                held = self._blocks.setdefault(id(block), _Block(block.nbytes, made))
                held.holders += 1
                if held.holders == 1:
                    self._count(held, held.nbytes)
        if keys:
            order, name = node.order, op.name

            def gone(_: weakref.ref[Node]) -> None:
                self.free(order)
                self._on_drop(name)

            self._nodes[order] = weakref.ref(node, gone), keys

    def _note_made(self, block: Any, given: set[int]) -> bool:
        """Return whether an op has made a block: it is known, or does not belong to an input."""
        key = id(block)
        if key not in self._made and key not in given:
            made = self._made  # not self: the callback lives as long as the block
            made[key] = weakref.ref(block, lambda _: made.pop(key, None))
        return key in self._made

    def _count(self, block: _Block, change: int) -> None:
        if not block.made:
            self.inputs += change
            return
        self.alive += change
        if change > 0:
            self.total += change
        else:
            self.freed -= change

    def free(self, order: int) -> None:
        """Note that the arrays that a node saved are freed; the node is known by its order."""
        _, keys = self._nodes.pop(order, (None, ()))
        for key in keys:
            block = self._blocks[key]
            block.holders -= 1
            if not block.holders:
                del self._blocks[key]
                self._count(block, -block.nbytes)

    def clear(self) -> None:
        """Forget all nodes and blocks."""
        self._nodes.clear()
        self._blocks.clear()
        self._made.clear()
