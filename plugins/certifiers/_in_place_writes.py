"""What a module writes over: a traced graph alone would show each such step as a new value."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

WRITES = {operator.iadd, operator.isub, operator.imul, operator.itruediv}
VIEWS = {nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, torch.flatten, "flatten"}
"""What may answer, in eval mode, with the very memory that it was given."""


class Tracer(fx.Tracer):
    """Records a sum in place as such, where fx's own would record a sum."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """What stands for the node's value while the module runs."""
        return InPlaceProxy(node, self)


def graph_method(function: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    """The method of a proxy that puts this function of two values into the graph."""

    def method(first: fx.Proxy, second: Any) -> fx.Proxy:
        made: fx.Proxy = first.tracer.create_proxy("call_function", function, (first, second), {})
        return made

    return method


class InPlaceProxy(fx.Proxy):
    """A proxy with the four assignments in place that a reader knows."""

    __iadd__ = graph_method(operator.iadd)
    __isub__ = graph_method(operator.isub)
    __imul__ = graph_method(operator.imul)
    __itruediv__ = graph_method(operator.itruediv)


def reads_overwritten_values(module: nn.Module, graph: fx.Graph) -> bool:
    """Whether a value is read, if only by the images' owner, after a step wrote over its memory."""
    memory: dict[fx.Node, fx.Node] = {}
    """Each node's first tenant of the memory that it lies in."""
    lost: set[fx.Node] = set()
    for node in graph.nodes:
        if not lost.isdisjoint(node.all_input_nodes):
            return True
        writes, views = is_in_place(module, node), operation_of(module, node) in VIEWS
        memory[node] = memory[node.all_input_nodes[0]] if writes or views else node
        if writes:
            tenants = {other for other, first in memory.items() if first is memory[node]}
            lost |= tenants - {node}
    return any(node.op == "placeholder" for node in lost)


def operation_of(module: nn.Module, node: fx.Node) -> Any:
    """The type of the layer that a node calls, or the function."""
    return type(layer_of(module, node)) if node.op == "call_module" else node.target


def is_in_place(module: nn.Module, node: fx.Node) -> bool:
    """Whether a node's value takes the place of its first input."""
    if node.op == "call_module":
        layer = layer_of(module, node)
        return isinstance(layer, nn.ReLU) and layer.inplace
    return node.target in WRITES or bool(node.kwargs.get("inplace"))


def layer_of(module: nn.Module, node: fx.Node) -> nn.Module:
    """The layer that a node calls."""
    return module.get_submodule(str(node.target))
