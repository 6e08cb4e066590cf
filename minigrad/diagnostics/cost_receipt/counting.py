"""The receipt of a training step: the work that was done, the work that was not, and the memory.

    with receipt() as r:
        loss_fn(model(x), y).backward()
        optimizer.step()
    print(r)

It shows why LoRA is not faster, and what it saves. A frozen weight has no gradient and no optimiser
state; the product for its gradient is not computed, and the activation that only this product needs
is not saved. But the forward pass remains, and also the backpropagation through every frozen weight
to the adapters below.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from minigrad.core.grad_mode import is_grad_enabled, mode
from minigrad.core.node import Edge, Node, arrays_in
from minigrad.core.observers import observe
from minigrad.core.op import Op
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.cost_receipt.costs import STEP_COSTS, SketchedCall
from minigrad.diagnostics.cost_receipt.report import Moment, Phase, Receipt
from minigrad.diagnostics.recorder import Recorder
from minigrad.optim import Optimizer
from minigrad.readonly import WeakIdMap, owner_of
from minigrad.renamed import with_hints
from minigrad.transforms.checkpoint import CHECKPOINT


@contextmanager
@with_hints
def receipt() -> Iterator[Receipt]:
    """Count the FLOPs and the bytes of what this thread does inside the block.

    The `Receipt` fills while the block runs, and keeps what was counted if the block raises an
    error. Blocks may be nested: each counts everything inside. A backward pass must run in the same
    block as its forward pass; what cannot be counted is listed in `uncounted`.

    A receipt counts ops, their VJPs and the steps of optimisers, but not what numpy or a kernel
    computes outside of these, as in `clip_grad_norm`. To find the FLOPs, a forward or VJP runs once
    more for each signature.
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
        recorder.saved.nodes.clear()  # otherwise nodes that are deleted later would be noted too


@dataclass
class _Block:
    nbytes: int
    made: bool  # by an op
    holders: int = 0  # nodes


class _SavedMemory:
    """Follows the memory that nodes save, block by block, and writes to the receipt.

    Several nodes may save the same array, or views of it. They share a block of memory, which stays
    until all of these nodes are freed or deleted. So each block is counted once.
    """

    def __init__(self, receipt: Receipt) -> None:
        # By the `order` of a node, which is unique and does not keep the node alive.
        self.nodes: dict[int, tuple[weakref.ref[Node], list[int]]] = {}
        self._receipt = receipt
        self._input_bytes = 0  # the bytes of parameters and inputs that nodes refer to now
        self._made: WeakIdMap[bool] = WeakIdMap()  # arrays that own memory and were made by an op
        self._blocks: dict[int, _Block] = {}  # by the id of the array that owns the memory

    def add(self, phase: Phase, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Note a call of `op`; some of its inputs may be new arrays, made only for this call."""
        fresh = [op.parameters.index(name) for name in op.fresh]
        known = [value for argnum, value in enumerate(inputs) if argnum not in fresh]
        given = {id(owner) for value in known for owner in _owners(value)}
        node = result.node if isinstance(result, Tensor) else None
        saved: list[Any] = []
        if node is not None and node.op is op:
            values = op.saved_values(node, node.edges or ())
            saved = [owner for _, value in values for owner in _owners(value)]
        for owner in (*_owners(result), *saved):
            if id(owner) not in given:
                self._made[owner] = True
        for owner in saved:
            made = self._made.get(owner) is not None
            block = self._blocks.setdefault(id(owner), _Block(owner.nbytes, made))
            block.holders += 1
            if block.holders == 1 and made:
                self._receipt.saved_bytes += block.nbytes
            elif block.holders == 1:
                self._input_bytes += block.nbytes
        self._receipt.input_bytes = max(self._receipt.input_bytes, self._input_bytes)
        if node is not None and saved:
            order, name = node.order, op.name
            gone = weakref.ref(node, lambda _: self.free("dropped", name, order))
            self.nodes[order] = gone, list(map(id, saved))
        self._note(phase, op.name)

    def free(self, phase: Phase, name: str, order: int) -> None:
        """Note that a node's residuals are freed; `order` identifies the node."""
        _, keys = self.nodes.pop(order, (None, ()))
        for key in keys:
            block = self._blocks[key]
            block.holders -= 1
            if block.holders:
                continue
            del self._blocks[key]
            if block.made:
                self._receipt.freed_bytes += block.nbytes
            else:
                self._input_bytes -= block.nbytes
        self._note(phase, name)

    def _note(self, phase: Phase, name: str) -> None:
        """Add a moment to the timeline, if the saved memory has changed."""
        timeline, saved = self._receipt.timeline, self._receipt.kept_bytes
        if saved != (timeline[-1].saved_bytes if timeline else 0):
            timeline.append(Moment(phase, name, saved))


def _owners(value: Any) -> list[Any]:
    return [owner_of(array) for array in arrays_in(value)]


@dataclass
class _Pass:
    """A backward pass that is running."""

    recorded: bool
    reached: set[int] = field(default_factory=set)  # nodes that have a gradient
    visited: int = -1  # the node whose VJPs are running
    edges: Iterator[Edge] = field(default_factory=lambda: iter(()))  # its VJPs that have not run
    needed: list[str] = field(default_factory=list)  # the names of its inputs whose VJPs have run


class _ReceiptRecorder(Recorder):
    """The observer that fills a receipt. It identifies nodes by `order`, to keep none alive."""

    def __init__(self, result: Receipt) -> None:
        super().__init__()
        self.saved = _SavedMemory(result)
        self._receipt = result
        self._passes: list[_Pass] = []
        self._calls: dict[int, SketchedCall] = {}  # the calls of nodes, until these are freed
        self._unrecorded: list[SketchedCall] = []  # calls with only frozen inputs
        self._leaves: set[int] = set()
        self._steps = Counter[Optimizer]()

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Count the forward of `op`.

        If a VJP or the forward of another op calls it, that is counted as a whole.
        """
        if mode.in_forward:
            return
        phase: Phase = "forward"
        if self._passes:
            rerun = [kind for kind in self.running if kind != "hook"][-1] == "rerun"
            phase = "recomputed" if rerun else "backward"
            if self.is_in_derivative and not self._passes[-1].recorded:
                return
        self.saved.add(phase, op, inputs, result)
        call = SketchedCall(op, inputs, result)
        what = (
            f"call of {op.name}, an op that does not compute only with functions of numpy whose "
            f"FLOPs are known; @op(cost=...) makes it count"
        )
        self._receipt.count(phase, op.name, "", call.flops(), what=what)
        node = result.node if isinstance(result, Tensor) else None
        if node is not None:
            self._calls[node.order] = call
        elif op.product and is_grad_enabled() and isinstance(result, Tensor):
            self._unrecorded.append(call)

    def on_pass(self, begins: bool) -> None:
        """Keep track of passes; for calls with only frozen inputs, count the products not done."""
        super().on_pass(begins)
        if not begins:
            del self._passes[-1:]  # nothing, if the pass began before the block
            return
        self._receipt.passes += not self._passes
        self._passes.append(_Pass(recorded=is_grad_enabled()))
        for call in self._unrecorded:
            self._count_not_done(call, needing=())
        self._unrecorded.clear()

    def on_vjp(self, node: Node, parent: Node, gradient: Any, result: Any) -> None:
        """Count a VJP, and the sums that the engine computes with its result."""
        running, size = self._passes[-1], math.prod(parent.shape)
        if node.order != running.visited:
            running.visited, running.edges, running.needed = node.order, iter(node.edges or ()), []
            if node.op is not None and node.order in self._calls:  # count its products not done
                needing = [node.op.input_name(edge[1]) for edge in node.edges or ()]
                self._count_not_done(self._calls[node.order], needing)
        # The next edge to `parent`, because several inputs of the node may have this parent.
        edge = next(edge for edge in running.edges if edge[0] is parent)
        if not running.recorded:  # in a recorded pass, the ops in the VJP are counted as calls
            assert node.op is not None
            name = node.op.input_name(edge[1])
            self._count_vjp(running, node, edge, name)
            if result.size > size:
                self._receipt.count("backward", node.name, name, result.size, calls=0)
            if parent.order in running.reached:
                self._receipt.count("backward", "sum of gradients", "", size)
        running.reached.add(parent.order)
        if parent.op is None and parent.order not in self._leaves:
            self._leaves.add(parent.order)
            self._receipt.trained += size
            self._receipt.gradient_bytes += size * parent.dtype.itemsize

    def _count_not_done(self, call: SketchedCall, needing: Collection[str]) -> None:
        """Count the products of a call for those inputs that need no gradient."""
        op = call.op
        for argnum, vjp in op.vjps if op.product else ():
            name = op.parameters[argnum]
            if name in needing or call.values[name] is None:
                continue
            if flops := call.vjp_flops(argnum, vjp):
                self._receipt.count("not done", op.name, name, flops)

    def _count_vjp(self, running: _Pass, node: Node, edge: Edge, name: str) -> None:
        op = node.op
        if op is CHECKPOINT or op is None:
            return  # the ops inside it are counted themselves
        call = self._calls.get(node.order)
        if call is None:
            outside = f"VJP of {op.name}, an op that was recorded outside of the receipt"
            self._receipt.count("backward", op.name, "", None, what=outside)
            return
        _, argnum, vjp, *saved = edge
        before, running.needed = running.needed, [*running.needed, name]
        flops = call.vjp_flops(argnum, vjp, saved) if op.plain or vjp.cost is not None else 0
        shared: int | None = 0
        if not op.plain:
            after = call.joint_vjp_flops(vjp, running.needed, saved)
            first = call.joint_vjp_flops(vjp, before, saved)
            shared = None if after is None or first is None else after - first
        what = (
            f"VJP of {op.name} for {name}, which is not written in ops only; cost=... beside the "
            f"VJP makes it count"
        )
        known = None if shared is None else flops
        self._receipt.count("backward", op.name, name, known, what=what)
        if flops is not None and shared:
            self._receipt.count("backward", op.name, "shared", shared)

    def on_accumulate(self, node: Node, gradient: Tensor) -> None:
        """Count the sum with an earlier gradient; a recorded sum is counted as a call of an op."""
        if node.grad is not None and gradient.node is None:
            self._receipt.count("backward", "sum of gradients", "", gradient.size)

    def on_free(self, node: Node) -> None:
        """Note that the residuals of a node are freed."""
        self._calls.pop(node.order, None)
        self.saved.free("backward", node.name, node.order)

    def on_step(self, optimizer: Optimizer) -> None:
        """Count the FLOPs of a step by its formula, and the bytes of the optimiser's state."""
        name, cost = type(optimizer).__name__, STEP_COSTS.get(type(optimizer))
        flops: int | None = None
        if cost is not None:
            flops = 0
            for group in optimizer.param_groups:
                each = cost(group) + bool(group["maximize"])
                flops += each * sum(p.size for p in group["params"] if p.grad is not None)
        what = f"step of {name}, which STEP_COSTS does not have"
        self._receipt.count("optimizer", name, "", flops, what=what)
        self._steps[optimizer] += 1
        self._receipt.steps = max(self._steps.values())
        self._receipt.optimizer_bytes = sum(each.state_bytes() for each in self._steps)
