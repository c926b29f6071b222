"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from regionsearch.client.clients import DEFAULT_URL
from regionsearch.client.operations import DEFAULT_COLLECTION

Url = Annotated[str, typer.Option("--url", envvar="REGIONSEARCH_URL", help="Address of the gateway.")]
ApiKey = Annotated[str | None, typer.Option("--api-key", envvar="REGIONSEARCH_API_KEY", help="API key.")]
CollectionName = Annotated[str, typer.Option("--collection", "-c", help="Collection.")]

URL = DEFAULT_URL
COLLECTION = DEFAULT_COLLECTION
