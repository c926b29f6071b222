"""For the reference of the client: what is made from operations is shown as the methods that it is."""

from __future__ import annotations

from typing import Any

import griffe

METHODS = "client.methods.Methods"
OPERATIONS = "client.operations"


class Operations(griffe.Extension):
    """Puts the function behind ``search = _Method(queries.search)`` in the place of the attribute."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Called when all modules of a package are known."""
        if pkg.name != "regionsearch":
            return
        methods = pkg[METHODS]
        for name, member in list(methods.members.items()):
            value = str(getattr(member, "value", ""))
            if value.startswith("_Method("):
                methods.set_member(name, _method(name, pkg[f"{OPERATIONS}.{value[len('_Method(') : -1]}"]))


def _method(name: str, operation: griffe.Function) -> griffe.Function:
    """A method with an operation's arguments, which returns its result."""
    returned = operation.returns
    if isinstance(returned, griffe.ExprSubscript):  # Operation[SearchResult]
        returned = returned.slice
    method = griffe.Function(
        name,
        lineno=operation.lineno,
        parameters=griffe.Parameters(griffe.Parameter("self"), *operation.parameters),
        returns=returned,
        docstring=operation.docstring,
    )
    method.labels.add("method")
    return method
