"""``torch.compile``, and what it needs in a sentence."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException

from regionsearch.errors import Kind, RegionSearchError

Params = ParamSpec("Params")
Result = TypeVar("Result")

GRAPHS = 64  # torch gives up after eight of one function unless it is told not to


def compiled(function: Callable[Params, Result], *, dynamic: bool | None = None) -> Callable[Params, Result]:
    """A function, or a module, that ``torch.compile`` compiles when it is first called: warm it up.

    Args:
        function: Takes and returns tensors.
        dynamic: None compiles a graph for batches of one, and another for all larger ones. False compiles one
            for each size, the fastest, for whom pads batches to few sizes.

    Raises:
        RegionSearchError: FAILED_PRECONDITION, when called, where torch cannot compile: the setting stays
            visible, and nobody wonders why a service is slow.
    """
    options: Any = {"recompile_limit": GRAPHS, "isolate_recompiles": True}  # torch's types lack them
    run: Callable[Params, Result] = torch.compile(function, dynamic=dynamic, **options)

    @functools.wraps(getattr(function, "forward", function))
    def call(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        try:
            return run(*args, **kwargs)
        except TorchDynamoException as error:
            cause = error.inner_exception if isinstance(error, BackendCompilerFailed) else error
            reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
            raise RegionSearchError(
                Kind.FAILED_PRECONDITION,
                f"compile is set, and torch cannot compile the model ({reason}); install a C++ compiler "
                "(Debian: g++), or unset compile",
                field="compile",
            ) from error

    return call
