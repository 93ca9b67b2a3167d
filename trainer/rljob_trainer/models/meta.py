"""Models whose parameters have no memory until they are sharded."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules that are made within keep shape and dtype of their parameters, but no values; buffers (such as the
    frequencies of rotary embeddings) are real. Not for use by several threads at once."""
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        original(module, name, parameter)
        if parameter is not None and parameter.device.type != "meta":
            empty = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
            module._parameters[name] = empty

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def on_meta(module: nn.Module) -> bool:
    """Whether parameters of `module` have no memory yet."""
    return any(parameter.is_meta for parameter in module.parameters())


def to_device[M: nn.Module](module: M, device: torch.device) -> M:
    """`module.to(device)`; nothing for a module without memory, which `materialize` puts there."""
    return module if on_meta(module) else module.to(device)


def materialize(module: nn.Module, device: torch.device | str) -> None:
    """Give the parameters memory on `device`, sharded ones their shard alone. Their values are undefined; buffers keep
    theirs, and parameters that are shared stay shared."""
    if not on_meta(module):
        return
    owners: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                owners[id(parameter)].append((part, name))
    values: dict[str, Any] = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    module.to_empty(device=device)
    for (first, name), *others in owners.values():
        for other, its_name in others:
            setattr(other, its_name, getattr(first, name))
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.copy_(values[name])
