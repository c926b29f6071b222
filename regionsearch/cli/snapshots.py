"""`regionsearch snapshots`: snapshots of the searcher, which these commands call directly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format

from regionsearch.cli.terminal import AsJson, print_table, tell

_TIMEOUT_S = 24 * 3600.0  # a large store takes its time

app = typer.Typer(no_args_is_help=True)


@app.callback()
def connection(
    context: typer.Context,
    searcher: Annotated[
        str, typer.Option(envvar="REGIONSEARCH_SEARCHER", help="host:port of the searcher.")
    ] = "localhost:50053",
    api_key: Annotated[
        str | None, typer.Option(envvar="REGIONSEARCH_SEARCHER_API_KEY", help="A key of the searcher.")
    ] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="PEM file of the trusted CA; no TLS if absent.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file, for mutual TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file, for mutual TLS.")] = None,
) -> None:
    """Snapshots of the searcher: list, create, delete, restore.

    Its setting embedded.snapshot_every_s takes them on a schedule.
    """
    from regionsearch.rpc.calls import CallPolicy, call
    from regionsearch.rpc.channels import ChannelConfig, TlsFiles, open_channel
    from regionsearch.v1.search_pb2_grpc import SearchServiceStub

    def ask(method: str, request: Any) -> Any:
        tls = None if tls_ca is None else TlsFiles(tls_ca, tls_cert, tls_key)
        policy = CallPolicy(timeout_s=_TIMEOUT_S, api_key=api_key, overload_attempts=1)
        with open_channel(searcher, ChannelConfig(tls=tls)) as channel:
            return call(getattr(SearchServiceStub(channel), method), request, policy)

    context.obj = ask


@app.command("list")
def list_snapshots(context: typer.Context, as_json: AsJson = False) -> None:
    """Show all snapshots that can be restored, the newest first."""
    from regionsearch.v1 import search_pb2

    found = context.obj("ListSnapshots", search_pb2.ListSnapshotsRequest()).snapshots
    if as_json:
        as_dict = [json_format.MessageToDict(one, preserving_proto_field_name=True) for one in found]
        typer.echo(json.dumps(as_dict, indent=1))
        return
    rows = [(one.name, f"{one.size_bytes / 1e6:.1f}", one.create_time.ToJsonString()) for one in found]
    print_table(("snapshot", "MB", "created"), rows)


@app.command("create")
def create_snapshot(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Its name; by default made from the time.")] = "",
    keep: Annotated[
        int, typer.Option(min=0, help="Afterwards delete all but the newest ones; 0 deletes none.")
    ] = 0,
) -> None:
    """Take a snapshot, while searches and writes go on; prints its name."""
    from regionsearch.v1 import search_pb2

    made = context.obj("Snapshot", search_pb2.SnapshotRequest(name=name, keep=keep))
    tell(f"{made.size_bytes / 1e6:.1f} MB, up to write {made.seq}")
    typer.echo(made.name)


@app.command("delete")
def delete_snapshot(context: typer.Context, name: str) -> None:
    """Delete a snapshot."""
    from regionsearch.v1 import search_pb2

    context.obj("DeleteSnapshot", search_pb2.DeleteSnapshotRequest(name=name))
    tell(f"{name} is deleted")


@app.command("restore")
def restore_snapshot(
    context: typer.Context,
    name: str,
    collection: Annotated[
        str, typer.Option("--collection", "-c", help="Bring back this one, and leave the others.")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Bring back what a snapshot holds; what was written since is lost."""
    from regionsearch.v1 import search_pb2

    lost = f"collection {collection}" if collection else "all collections"
    if not yes:
        typer.confirm(f"Replace {lost} by {name}?", abort=True, err=True)
    done = context.obj("Restore", search_pb2.RestoreRequest(name=name, collection=collection))
    tell(f"{done.collection_count} collections are restored, as of write {done.seq}")
