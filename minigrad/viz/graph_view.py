"""The scene: what there is to be drawn of a graph, for the drawing and the page alike.

Places are what gradients reach, links the ways that they take. Where an input of an op has no link,
no gradient goes there: it is a frozen one, and the scene says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.core.node import Edge, Node, OpLike, reachable
from minigrad.core.tensor import Tensor, node_of
from minigrad.diagnostics.recorder import CallRecord, ModuleCall
from minigrad.nn import Module, Parameter
from minigrad.ops import nf4_linear
from minigrad.viz.names import Names, numbered
from minigrad.viz.tape import Tape
from minigrad.viz.values import saved_inputs, takes_sequence, values_of

Array = NDArray[Any]

UNKNOWN = (
    "It needs no gradient: a number, a plain array, or a tensor without requires_grad=True. Only a "
    "tape of viz.record() knows which."
)


@dataclass(eq=False)
class Frozen:
    """An input that no gradient goes to.

    Attributes:
        name: what it is called.
        why: why no gradient goes there, in a sentence.
        value: an array or a number, or None where it is not kept.
        group: the module call that it is drawn in.
    """

    name: str
    why: str
    value: Any = None
    group: ModuleCall | None = None


@dataclass(eq=False)
class Link:
    """The way of a gradient from `target`, the result of an op, to `source`, an input of it.

    Attributes:
        source: the node of the input.
        target: the node of the result.
        edge: the edge of the graph.
        input: what the op calls its input.
    """

    source: Node
    target: Node
    edge: Edge
    input: str


@dataclass(eq=False)
class Place:
    """A node of the graph, and all that is known of it.

    Attributes:
        node: the node.
        name: of the variable or parameter that holds it, or of its op, with a number if there are
            several.
        named: whether it is the name of a variable or parameter.
        value: its value, or None where it is not kept.
        call: the call that made it, if it is on the tape.
        group: the innermost module whose forward made it; for a leaf, that which all its uses have
            in common.
        links: the ways of its gradient to its inputs.
        frozen: its inputs that no gradient goes to, by what the op calls them.
        options: what else its op was called with, as far as it is known.
    """

    node: Node
    name: str = ""
    named: bool = False
    value: Array | None = None
    call: CallRecord | None = None
    group: ModuleCall | None = None
    links: list[Link] = field(default_factory=list)
    frozen: list[tuple[str, Frozen]] = field(default_factory=list)
    options: list[tuple[str, str]] = field(default_factory=list)


@dataclass(eq=False)
class Scene:
    """A graph, ready to be drawn.

    Attributes:
        root: the node of the loss.
        places: by node, the oldest first.
        frozen: the inputs that no gradient goes to, each once.
        groups: the module calls that something was made in, outer ones first.
        names: what modules and tensors are called.
    """

    root: Node
    places: dict[Node, Place]
    frozen: list[Frozen]
    groups: list[ModuleCall]
    names: Names

    @property
    def links(self) -> list[Link]:
        """All ways that gradients take, in the order of the places."""
        return [link for place in self.places.values() for link in place.links]


def scene_of(
    role: str, loss: Tensor, tape: Tape | None, model: Module | None, variables: Mapping[str, Any]
) -> Scene:
    """The scene of the graph behind `loss`.

    Raises:
        TypeError: if it is no Tensor, the tape no tape, or the model no module.
        ValueError: if the tape has seen nothing of the graph.
        RuntimeError: if there is no graph, or it was freed.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"{role}: loss must be a Tensor, not {type(loss).__name__}")
    root = node_of(loss, role)
    if not isinstance(tape, Tape | None):
        raise TypeError(f"{role}: tape must be what viz.record() gives, not {tape!r:.60}")
    if not isinstance(model, Module | None):
        raise TypeError(f"{role}: model must be a Module, not {model!r:.60}")
    nodes = reachable([root])[::-1]
    if tape is not None and root.op is not None and not any(node in tape.calls for node in nodes):
        raise ValueError(
            f"{role}: the tape has seen nothing of this graph; compute the result in the block of "
            f"`with viz.record() as tape:`"
        )
    names = Names(variables, model, () if tape is None else tape.roots)
    values = values_of(nodes, tape)
    values.setdefault(root, loss._data)
    calls = {} if tape is None else tape.calls
    places = {
        node: Place(
            node,
            names.of_node(node),
            bool(names.of_node(node)),
            values.get(node),
            calls.get(node),
            calls[node].module if node in calls else None,
        )
        for node in nodes
    }
    unnamed = [place for place in places.values() if not place.name]
    for place, name in zip(unnamed, numbered(p.node.name for p in unnamed), strict=True):
        place.name = name
    scene = Scene(root, places, [], [], names)
    _Inputs(scene, tape).add()
    _place_in_groups(scene)
    return scene


class _Inputs:
    """Finds the inputs of each place: where its gradient goes on to, and where it does not."""

    def __init__(self, scene: Scene, tape: Tape | None) -> None:
        self._scene = scene
        self._tape = tape
        self._known: dict[Any, Frozen] = {}

    def add(self) -> None:
        for place in self._scene.places.values():
            if place.node.op is not None:
                self._add_inputs(place, place.node.op)

    def _add_inputs(self, place: Place, op: OpLike) -> None:
        edges = place.node.edges or ()
        place.links = [Link(e[0], place.node, e, op.input_name(e[1])) for e in edges]
        linked = {edge[1] for edge in edges}
        many = takes_sequence(op) or not op.rules
        given: dict[int, Any]
        if place.call is not None:
            given = dict(enumerate(place.call.inputs))
        else:
            given = saved_inputs(place.node)
        positions = given if many else range(len(op.parameters))
        ruled = set(given) if many else {position for position, _ in op.rules}
        for position in sorted(set(positions) - linked):
            name = op.input_name(position)
            value = given.get(position)
            if position in ruled and position not in given:
                if op.is_required(position):
                    self._freeze(place, name, Frozen(_unnamed(name), UNKNOWN), None)
                else:
                    place.options.append((name, "left out, or in need of no gradient"))
            elif position in ruled and value is None:
                place.options.append((name, "None"))
            elif position in ruled:
                self._freeze(place, name, self._frozen(name, value), value)
            elif op is nf4_linear and name == "weight" and value is not None:
                why = (
                    f"A frozen matrix in four bits a number (NF4): `{op.name}` has no rule for it."
                )
                self._freeze(place, name, Frozen(_unnamed(name), why, value.dense()), value.codes)
            elif isinstance(value, (Tensor, np.ndarray)):
                why = f"`{op.name}` cannot be differentiated by its {name}, and has no rule for it."
                frozen = self._frozen(name, value)
                self._freeze(place, name, Frozen(frozen.name, why, frozen.value), value)
            elif position in given:
                place.options.append((name, _in_words(value)))

    def _freeze(self, place: Place, name: str, frozen: Frozen, value: Any) -> None:
        """Draw one and the same array once, however often it is used; numbers each by itself.

        Of what is stored in another form, `value` is the array that holds it.
        """
        array = value._data if isinstance(value, Tensor) else value
        if isinstance(array, np.ndarray) and array.size > 1:
            key = (array.__array_interface__["data"][0], array.shape, array.strides, frozen.why)
            frozen = self._known.setdefault(key, frozen)
        if frozen not in self._scene.frozen:
            self._scene.frozen.append(frozen)
        place.frozen.append((name, frozen))

    def _frozen(self, name: str, value: Any) -> Frozen:
        array = value._data if isinstance(value, Tensor) else value
        known = self._scene.names.of_memory(value)
        made = None if self._tape is None else self._tape.made(value)
        called = _unnamed(name) if made is None else made.name
        called = called if known is None else known[0]
        shown = array if isinstance(array, (np.ndarray, np.generic, int, float)) else None
        if np.ndim(array) == 0 and shown is not None:
            called = f"{np.asarray(array).item():.4g}" if known is None else called
        return Frozen(called, self._why(value), shown)

    def _why(self, value: Any) -> str:
        if isinstance(value, (bool, int, float, np.generic)):
            return "A number: there is nothing to differentiate by."
        if not isinstance(value, (Tensor, np.ndarray)):
            return "A list of numbers: there is nothing to differentiate by."
        left = None if self._tape is None else self._tape.left(value)
        if left is not None:
            tensor, how = left.inputs[0], left.name
            place = None if tensor.node is None else self._scene.places.get(tensor.node)
            whom = "" if place is None else f" {place.name}"
            return f"The value of{whom or ' a tensor'} as {how} gives it: no gradient follows."
        known = self._scene.names.of_memory(value)
        holder = value if known is None else known[1]  # of this memory
        if isinstance(holder, Parameter):
            if holder.node is None:
                return "A frozen parameter: requires_grad=False."
            return "The value of a parameter, taken as a constant: no gradient follows."
        made = None if self._tape is None else self._tape.made(value)
        if made is not None and not made.recorded:
            return f"`{made.name}` made it under no_grad(): nothing was recorded."
        if made is not None:
            return f"`{made.name}` made it of inputs of which none needs a gradient."
        if isinstance(holder, Tensor) and holder.node is None:
            return "A tensor that needs no gradient: requires_grad=False."
        return UNKNOWN if self._tape is None else "A plain array: it has no place in a graph."


def _unnamed(name: str) -> str:
    """What to call an array that nothing names; the op's own word for it could be a variable's."""
    return f"input {name}"


def _in_words(value: Any) -> str:
    """An option as a reader would write it."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"an array of shape {value.shape}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --------------------------------------------------------------------------------------------------
# Groups
# --------------------------------------------------------------------------------------------------


def _place_in_groups(scene: Scene) -> None:
    """Put leaves and frozen inputs into the module that uses them, and list the modules."""
    uses: dict[Any, list[ModuleCall | None]] = {}
    for place in scene.places.values():
        for link in place.links:
            uses.setdefault(link.source, []).append(place.group)
        for _, frozen in place.frozen:
            uses.setdefault(frozen, []).append(place.group)
    for place in scene.places.values():
        if place.node.op is None:
            place.group = _common(uses.get(place.node, ()))
    for frozen in scene.frozen:
        frozen.group = _common(uses.get(frozen, ()))
    groups: dict[ModuleCall, None] = {}
    items: list[Place | Frozen] = [*scene.places.values(), *scene.frozen]
    for item in items:
        groups.update(dict.fromkeys(_chain(item.group)))
    scene.groups = list(groups)


def _chain(group: ModuleCall | None) -> list[ModuleCall]:
    """A group and those around it, the outermost first."""
    chain: list[ModuleCall] = []
    while group is not None:
        chain.insert(0, group)
        group = group.parent
    return chain


def _common(groups: Iterable[ModuleCall | None]) -> ModuleCall | None:
    """The innermost group that all are in."""
    chains: Sequence[Sequence[ModuleCall]] = [_chain(group) for group in groups]
    common = None
    for level in zip(*chains, strict=False):
        if any(group is not level[0] for group in level):
            break
        common = level[0]
    return common
