"""What the page is told: the scene and the ways through it, as one value for JSON."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrad.core.node import Node, OpLike
from minigrad.diagnostics.recorder import ModuleCall
from minigrad.viz.graph_view import Frozen, Link, Place, Scene
from minigrad.viz.previews import Album
from minigrad.viz.replay import Sent, Step, Way
from minigrad.viz.source import filled_in, in_short, signature_of, source_of
from minigrad.viz.values import saved_by

Json = dict[str, Any]


@dataclass(frozen=True)
class Show:
    """A way, as it is offered to the reader.

    Attributes:
        key: a short name of it.
        title: what the button says.
        about: what happens on it, in a few sentences.
        way: the way.
        right: what each leaf's `.grad` should be in the end.
        held: the gradients that are there before it begins.
    """

    key: str
    title: str
    about: str
    way: Way
    right: dict[Node, Any]
    held: dict[Node, Any]


def page_data(title: str, scene: Scene, shows: Sequence[Show], album: Album) -> Json:
    """All that the page needs, with the pictures that `album` makes."""
    return _Writer(scene, album).write(title, shows)


class _Writer:
    def __init__(self, scene: Scene, album: Album) -> None:
        self._scene = scene
        self._album = album
        self._links = {id(link): i for i, link in enumerate(scene.links)}
        self._places = {node: i for i, node in enumerate(scene.places)}
        self._groups = {group: i for i, group in enumerate(scene.groups)}
        self._frozen = {frozen: i for i, frozen in enumerate(scene.frozen)}
        self._ops: dict[int, int] = {}
        self._written_ops: list[Json] = []
        self._rules: dict[int, int] = {}
        self._written_rules: list[Json] = []
        self._steps: dict[int, int] = {}
        self._written_steps: list[Json] = []

    def write(self, title: str, shows: Sequence[Show]) -> Json:
        return {
            "title": title,
            "root": self._places[self._scene.root],
            "places": [self._place(place) for place in self._scene.places.values()],
            "frozen": [self._frozen_input(frozen) for frozen in self._scene.frozen],
            "links": [self._link(link) for link in self._scene.links],
            "groups": [self._group(group) for group in self._scene.groups],
            "ways": [self._show(show) for show in shows],
            "steps": self._written_steps,
            "ops": self._written_ops,
            "rules": self._written_rules,
            "kinds": self._album.kinds,
            "pictures": self._album.pictures,
        }

    def _place(self, place: Place) -> Json:
        node = place.node
        written: Json = {
            "name": place.name,
            "named": place.named,
            "shape": list(node.shape),
            "dtype": node.dtype.name,
            "group": self._group_index(place.group),
        }
        if place.frozen:
            written["frozen"] = [[name, self._frozen[frozen]] for name, frozen in place.frozen]
        if place.options:
            written["options"] = place.options
        if node.op is not None:
            written["op"] = self._op(node.op)
        if place.value is not None:
            written["value"] = self._album.add(place.value)
        if place.call is not None and place.call.source_line is not None:
            written["origin"] = str(place.call.source_line)
        if node.hooks:
            written["hooks"] = len(node.hooks)
        return written

    def _frozen_input(self, frozen: Frozen) -> Json:
        written: Json = {
            "name": frozen.name,
            "why": frozen.why,
            "group": self._group_index(frozen.group),
        }
        if frozen.value is not None:
            written["value"] = self._album.add(frozen.value)
        return written

    def _group(self, group: ModuleCall) -> Json:
        kind = type(group.module).__name__
        return {
            "name": group.name or self._scene.names.of_module(group.module) or kind,
            "type": kind,
            "parent": self._group_index(group.parent),
        }

    def _group_index(self, group: ModuleCall | None) -> int:
        return -1 if group is None else self._groups[group]

    def _link(self, link: Link) -> Json:
        given = [[name, *self._given(value)] for name, value in saved_by(link.target, link.edge)]
        op = link.target.op
        if op is not None and op.rules and not op.plain:
            needed = {edge[1] for edge in link.target.edges or ()}
            known = [(op.parameters[position], position in needed) for position, _ in op.rules]
            words = ", ".join(f"{name} {'yes' if need else 'no'}" for name, need in known)
            given.insert(0, ["needs", -1, words])
        return {
            "source": self._places[link.source],
            "target": self._places[link.target],
            "input": link.input,
            "rule": self._rule(link),
            "given": given,
        }

    def _given(self, value: Any) -> list[Any]:
        """A picture of what a rule is given, or -1 and words for it."""
        if isinstance(value, (np.ndarray, np.generic, int, float)):
            return [self._album.add(value)]
        text = repr(value)
        return [-1, text if len(text) <= 60 else f"{text[:57]}..."]

    # ----------------------------------------------------------------------------------------------
    # Source
    # ----------------------------------------------------------------------------------------------

    def _op(self, op: OpLike) -> int:
        if id(op) not in self._ops:
            self._ops[id(op)] = len(self._written_ops)
            forward = source_of(op.forward)
            written: Json = {
                "name": op.name,
                "parameters": list(op.parameters),
                "signature": f"{op.name}({signature_of(op.forward)})",
                "doc": _paragraphs(inspect.getdoc(op) or ""),
                "forward": forward.text if forward else "The source of its forward is not there.",
            }
            composition = source_of(op.composition)
            if composition is not None:
                written["composition"] = composition.text
            self._written_ops.append(written)
        return self._ops[id(op)]

    def _rule(self, link: Link) -> int:
        op, rule = link.target.op, link.edge[2]
        assert op is not None
        key = id(rule.derivative) if rule is not None else id(op)
        if key not in self._rules:
            self._rules[key] = len(self._written_rules)
            self._written_rules.append(_rule_in_words(op, rule))
        return self._rules[key]

    # ----------------------------------------------------------------------------------------------
    # Ways
    # ----------------------------------------------------------------------------------------------

    def _show(self, show: Show) -> Json:
        way = show.way
        ends = [
            [self._places[step.node], self._album.add(step.after), self._album.add(right)]
            for step in way.steps
            if step.kind == "leaf"
            for right in [show.right[step.node]]
        ]
        return {
            "key": show.key,
            "title": show.title,
            "about": show.about,
            "steps": [self._step(step) for step in way.steps],
            "fault": -1 if way.first_fault is None else way.first_fault,
            # What is said of steps with a fault or note: the same of all of them.
            "words": {
                name: next((text for step in way.steps if (text := getattr(step, name))), "")
                for name in ("fault", "note")
            },
            "ends": ends,
            "held": [[self._places[node], self._album.add(g)] for node, g in show.held.items()],
        }

    def _step(self, step: Step) -> int:
        if id(step) not in self._steps:
            self._steps[id(step)] = len(self._written_steps)
            written: Json = {
                "kind": step.kind,
                "node": self._places[step.node],
                "g": self._album.add(step.gradient),
                "arrivals": step.arrivals,
            }
            if step.sent:
                written["sent"] = [self._sent(step, sent) for sent in step.sent]
            for name in ("before", "after"):
                value = getattr(step, name)
                if value is not None:
                    written[name] = self._album.add(value)
            written |= {name: 1 for name in ("fault", "note") if getattr(step, name)}
            self._written_steps.append(written)
        return self._steps[id(step)]

    def _sent(self, step: Step, sent: Sent) -> list[Any]:
        """`[link, gradient, after, before or -1]`, and where there is more to say, an object."""
        before = -1 if sent.before is None else self._album.add(sent.before)
        index = self._links[id(sent.link)]
        written = [index, self._album.add(sent.gradient), self._album.add(sent.after), before]
        more: Json = {}
        if sent.due is not None:
            more["due"] = self._album.add(sent.due)
        if (sent.result.shape, sent.result.dtype) != (sent.gradient.shape, sent.gradient.dtype):
            more["result"] = self._album.add(sent.result)
        rule = self._written_rules[self._rule(sent.link)]
        values = {"g": step.gradient, **dict(saved_by(sent.link.target, sent.link.edge))}
        filled = filled_in(rule.get("formula", ""), values)
        result = in_short(sent.result) if sent.result.size == 1 else filled
        if filled is not None and filled != result:
            more["filled"] = f"{filled} = {result}"
        return [*written, more] if more else written


def _paragraphs(doc: str) -> list[str]:
    """The paragraphs of a docstring, without its sections on arguments and errors."""
    text = re.split(r"\n\n(?:Args|Returns|Raises|Attributes):\n", doc)[0]
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def _rule_in_words(op: OpLike, rule: Any) -> Json:
    """The text of a rule, or what runs in its place."""
    if rule is None:
        return {
            "title": f"{op.name} has no rule",
            "text": "",
            "note": "Its function runs again, recording this time, and the gradient goes back "
            "through what it has recorded.",
        }
    inputs = [op.parameters[position] for position, known in op.rules if known is rule]
    names = f'"{inputs[0]}"' if op.plain else "(" + ", ".join(f'"{name}"' for name in inputs) + ")"
    written: Json = {
        "title": f"{op.name}.{'rule' if op.plain else 'joint_rule'}({names})",
        "inputs": list(op.parameters),
        "parameters": signature_of(rule.derivative),
    }
    source = source_of(rule.derivative)
    if source is None:
        return {**written, "text": "", "note": "The source of this rule cannot be found."}
    written |= {"text": source.text, "formula": source.formula}
    if source.kernel:
        written["note"] = "Arrays take a kernel that computes the same in one pass."
    elif op.replayed:
        written["note"] = (
            "A fused op: this kernel is what runs. It computes the derivative of the composition."
        )
    return written
