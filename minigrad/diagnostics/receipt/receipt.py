"""The receipt of a training step: what was computed, what was not, and what memory that took.

    with receipt() as r:
        loss_fn(model(x), y).backward()
        optimizer.step()
    print(r)

It answers why LoRA is not faster, and what it saves: for a frozen weight the product for its
gradient is not done, the activation that only that product needs is not kept, and there is no
gradient and no state. But the forward pass, and the way of the gradient back through every frozen
weight to the adapters below, remain.

A receipt watches through `Observer`. What a call costs is said in `costs`, which memory the graph
holds is followed in `saved`, and `report` has what comes out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minigrad.core.checkpoint import CHECKPOINT
from minigrad.core.grad_mode import is_grad_enabled
from minigrad.core.observers import observe
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.receipt.costs import COSTS, STEP_COSTS, Call, Cost
from minigrad.diagnostics.receipt.report import Moment, Phase, Receipt
from minigrad.diagnostics.receipt.saved import SavedMemory
from minigrad.diagnostics.recorder import Recorder

if TYPE_CHECKING:
    from minigrad.core.node import Node, OpLike
    from minigrad.core.op import Op
    from minigrad.optim import Optimizer


@contextmanager
def receipt() -> Iterator[Receipt]:
    """Count the FLOPs and the bytes of what this thread does inside the block.

    The `Receipt` fills while the block runs, and keeps what was counted if the block raises. Blocks
    may be nested: each counts all that is inside. The backward pass must run inside the block as
    well as the forward pass it belongs to; what cannot be counted is listed in `uncounted`. Seen
    are ops, their rules and the steps of optimisers; what numpy or a kernel computes beside them,
    as in `clip_grad_norm`, is not.
    """
    result = Receipt()
    recorder = _ReceiptRecorder(result)
    try:
        with observe(recorder):
            yield result
    except BaseException as error:
        result.interrupted_by = type(error).__name__
        raise
    finally:
        recorder.close()


@dataclass
class _Pass:
    """A backward pass that is running."""

    recorded: bool
    reached: set[int] = field(default_factory=set)  # places that have a gradient
    visited: int = -1  # the node whose rules are running
    edge: int = 0  # the next of its edges
    needed: list[str] = field(default_factory=list)  # its inputs whose rules have run


class _ReceiptRecorder(Recorder):
    """Fills a receipt. Nodes are known by `order`, so that none is kept alive."""

    def __init__(self, result: Receipt) -> None:
        super().__init__()
        self._receipt = result
        self._saved = SavedMemory(self._on_drop)
        self._passes: list[_Pass] = []
        self._calls: dict[int, tuple[Cost, Call]] = {}  # of nodes, until they are freed
        self._unrecorded: list[tuple[OpLike, Cost, Call]] = []  # products of what is all frozen
        self._leaves: set[int] = set()
        self._optimizers: dict[int, tuple[Optimizer, int, int]] = {}  # with bytes and steps

    def close(self) -> None:
        """Hold on to nothing."""
        self._saved.close()
        self._calls.clear()
        self._unrecorded.clear()
        self._optimizers.clear()

    # ----------------------------------------------------------------------------------------------
    # Calls
    # ----------------------------------------------------------------------------------------------

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Count the forward of `op`, unless it is a part of a rule, whose cost is known."""
        phase = self._phase(result)
        if phase is None:
            return
        cost = COSTS.get(op)
        self._saved.add(op, inputs, result, () if cost is None else cost.own)
        self._note(phase, op.name)
        if cost is None:
            self._cannot_count(f"call of {op.name}, an op that COSTS does not have")
            return
        call = Call(op, inputs, result)
        self._receipt.count(phase, op.name, "", cost.forward(call))
        node = result.node if isinstance(result, Tensor) else None
        if node is not None:
            self._calls[node.order] = cost, call
        elif cost.product and is_grad_enabled() and isinstance(result, Tensor):
            self._unrecorded.append((op, cost, call))

    def _phase(self, result: Any) -> Phase | None:
        """What a call is part of; None for that of a rule on arrays."""
        if not self._passes:
            return "forward"
        if [kind for kind in self.running if kind != "hook"][-1] == "rerun":
            return "recomputed"
        if self._passes[-1].recorded:
            return "backward"
        return "backward" if isinstance(result, Tensor) else None  # a hook's, of a gradient

    # ----------------------------------------------------------------------------------------------
    # Backward passes
    # ----------------------------------------------------------------------------------------------

    def on_pass(self, begins: bool) -> None:
        """Keep track of passes; what has no node at all had a product to spare for each input."""
        super().on_pass(begins)
        if not begins:
            self._passes.pop()
            return
        self._receipt.passes += not self._passes
        self._passes.append(_Pass(recorded=is_grad_enabled()))
        for op, cost, call in self._unrecorded:
            self._count_not_done(op, cost, call, needing=())
        self._unrecorded.clear()

    def on_rule(self, node: Node, place: Node, gradient: Any, result: Any) -> None:
        """Count a rule, and what the engine does with its result."""
        running = self._passes[-1]
        if node.order != running.visited:
            running.visited, running.edge, running.needed = node.order, 0, []
            self._count_visit(node)
        name = self._next_input(running, node, place)
        if not running.recorded:  # else all that a rule does is seen in calls
            self._count_rule(running, node, name)
            if result.size > math.prod(place.shape):
                self._receipt.count("backward", node.name, name, result.size, calls=0)
            if place.order in running.reached:
                self._receipt.count("backward", "sum of gradients", "", math.prod(place.shape))
        running.reached.add(place.order)
        if place.op is None and place.order not in self._leaves:
            self._leaves.add(place.order)
            self._receipt.trained += math.prod(place.shape)
            self._receipt.gradient_bytes += math.prod(place.shape) * place.dtype.itemsize

    @staticmethod
    def _next_input(running: _Pass, node: Node, place: Node) -> str:
        """Which input of `node` the rule was for; one tensor may be several of them."""
        edges = node.edges or ()
        while edges[running.edge][0] is not place:
            running.edge += 1
        position = edges[running.edge][1]
        running.edge += 1
        assert node.op is not None
        return node.op.input_name(position)

    def _count_visit(self, node: Node) -> None:
        """Count what does not run, where the rules of `node` do."""
        if node.op is not None and node.order in self._calls:
            needing = [node.op.input_name(edge[1]) for edge in node.edges or ()]
            self._count_not_done(node.op, *self._calls[node.order], needing)

    def _count_not_done(self, op: OpLike, cost: Cost, call: Call, needing: Collection[str]) -> None:
        """The products of a node for the inputs that it was given and that need no gradient."""
        for name, count in cost.rules.items() if cost.product else ():
            if name not in needing and call.has(name) and count(call):
                self._receipt.count("not done", op.name, name, count(call))

    def _count_rule(self, running: _Pass, node: Node, name: str) -> None:
        if node.op is CHECKPOINT:
            return  # its work is that of the ops inside, which are seen themselves
        if node.order not in self._calls:
            outside = node.op in COSTS
            why = "was recorded outside of the receipt" if outside else "COSTS does not have"
            self._cannot_count(f"rule of {node.name}, an op that {why}")
            return
        cost, call = self._calls[node.order]
        rule = cost.rules.get(name.partition("[")[0])
        if rule is None:
            self._cannot_count(f"rule of {node.name} for {name}, which COSTS does not have")
            return
        before = cost.shared(call, running.needed)
        running.needed.append(name)
        shared = cost.shared(call, running.needed) - before
        self._receipt.count("backward", node.name, name, rule(call))
        if shared:
            self._receipt.count("backward", node.name, "shared", shared)

    def on_accumulate(self, place: Node, gradient: Tensor) -> None:
        """Count the sum with an earlier gradient; a recorded one is an op, and seen itself."""
        if place.grad is not None and gradient.node is None:
            self._receipt.count("backward", "sum of gradients", "", gradient.size)

    def on_free(self, node: Node) -> None:
        """Note what memory is held no more."""
        self._calls.pop(node.order, None)
        self._saved.free(node)
        self._note("backward", node.name)

    # ----------------------------------------------------------------------------------------------
    # Steps
    # ----------------------------------------------------------------------------------------------

    def on_step(self, optimizer: Optimizer) -> None:
        """Count a step by its formula, and the state that it leaves."""
        name, cost = type(optimizer).__name__, STEP_COSTS.get(type(optimizer))
        if cost is None:
            self._cannot_count(f"step of {name}, which STEP_COSTS does not have")
        else:
            flops = sum(
                parameter.size * cost(group)
                for group in optimizer.param_groups
                for parameter in group["params"]
                if parameter.grad is not None
            )
            self._receipt.count("optimizer", name, "", flops)
        steps = self._optimizers.get(id(optimizer), (optimizer, 0, 0))[2] + 1
        self._optimizers[id(optimizer)] = optimizer, optimizer.state_bytes(), steps
        self._receipt.steps = max(count for _, _, count in self._optimizers.values())
        self._receipt.optimizer_bytes = sum(held for _, held, _ in self._optimizers.values())

    # ----------------------------------------------------------------------------------------------
    # The receipt
    # ----------------------------------------------------------------------------------------------

    def _on_drop(self, name: str) -> None:
        self._note("dropped", name)

    def _note(self, phase: Phase, name: str) -> None:
        """A point of the timeline, if the memory that is held has changed."""
        memory, result = self._saved, self._receipt
        result.saved_bytes, result.freed_bytes = memory.total, memory.freed
        result.input_bytes = max(result.input_bytes, memory.inputs)
        if memory.alive != (result.timeline[-1].saved_bytes if result.timeline else 0):
            result.timeline.append(Moment(phase, name, memory.alive))

    def _cannot_count(self, what: str) -> None:
        known = self._receipt.uncounted
        known[what] = known.get(what, 0) + 1
