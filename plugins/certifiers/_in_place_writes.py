"""Traces in-place operations of a module, and finds values that are read after being overwritten.

A graph traced by torch.fx alone shows each in-place operation as a new value.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

WRITES = {operator.iadd, operator.isub, operator.imul, operator.itruediv}
VIEWS = {nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, torch.flatten, "flatten"}
"""Operations whose output may share the memory of their input in eval mode."""


class Tracer(fx.Tracer):
    """A torch.fx tracer that records in-place arithmetic as such."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """The proxy for a node's value during tracing."""
        return InPlaceProxy(node, self)


def graph_method(function: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    """A method of a proxy that adds a call of `function` with two values to the graph."""

    def method(first: fx.Proxy, second: Any) -> fx.Proxy:
        """Add the call to the graph."""
        made: fx.Proxy = first.tracer.create_proxy("call_function", function, (first, second), {})
        return made

    return method


class InPlaceProxy(fx.Proxy):
    """A proxy that supports the four in-place arithmetic operators."""

    __iadd__ = graph_method(operator.iadd)
    __isub__ = graph_method(operator.isub)
    __imul__ = graph_method(operator.imul)
    __itruediv__ = graph_method(operator.itruediv)


def reads_overwritten_values(module: nn.Module, graph: fx.Graph) -> bool:
    """Whether a value or the input is read after an operation has overwritten its memory."""
    memory: dict[fx.Node, fx.Node] = {}
    """The node that first used each node's memory."""
    overwritten: set[fx.Node] = set()
    for node in graph.nodes:
        if not overwritten.isdisjoint(node.all_input_nodes):
            return True
        writes, views = is_in_place(module, node), operation_of(module, node) in VIEWS
        memory[node] = memory[node.all_input_nodes[0]] if writes or views else node
        if writes:
            aliases = {other for other, first in memory.items() if first is memory[node]}
            overwritten |= aliases - {node}
    return any(node.op == "placeholder" for node in overwritten)


def operation_of(module: nn.Module, node: fx.Node) -> Any:
    """The type of the layer that a node calls, or the function."""
    return type(layer_of(module, node)) if node.op == "call_module" else node.target


def is_in_place(module: nn.Module, node: fx.Node) -> bool:
    """Whether a node writes its value into the memory of its first input."""
    if node.op == "call_module":
        layer = layer_of(module, node)
        return isinstance(layer, nn.ReLU) and layer.inplace
    return node.target in WRITES or bool(node.kwargs.get("inplace"))


def layer_of(module: nn.Module, node: fx.Node) -> nn.Module:
    """The layer that a node calls."""
    return module.get_submodule(str(node.target))
