"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from regionsearch import defaults

if TYPE_CHECKING:
    from regionsearch.client import Client

Url = Annotated[str, typer.Option("--url", envvar="REGIONSEARCH_URL", help="Address of the gateway.")]
ApiKey = Annotated[str | None, typer.Option("--api-key", envvar="REGIONSEARCH_API_KEY", help="API key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CollectionName = Annotated[str, typer.Option("--collection", "-c", help="Collection.")]

URL = defaults.URL
COLLECTION = defaults.COLLECTION


def connect(url: str, api_key: str | None, *, retries: int = 2, timeout_s: float = 300) -> Client:
    """A client; its libraries are imported only now, so that help is quick.

    Somebody waits in front of the screen: a server that is away is soon said to be.
    """
    from regionsearch.client import Client

    return Client(url, api_key=api_key, retries=retries, timeout_s=timeout_s)
