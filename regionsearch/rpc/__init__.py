"""The caller's side of gRPC, for the client, the gateway and anybody who calls a service directly.

    with open_channel("dns:///embedder:50052", ChannelConfig(service="regionsearch.v1.EmbedService")) as
    channel:
        stub = EmbedServiceStub(channel)
        with deadline(10):
            answers = fan_out(lambda part: call(stub.EmbedRegions, request(part)), list(chunked(regions, 64)))

``open_aio_channel``, ``acall`` and ``afan_out`` do the same on an event loop.
"""

from regionsearch.rpc.calls import DEFAULT_POLICY, CallPolicy, acall, call, deadline, remaining
from regionsearch.rpc.channels import ChannelConfig, TlsFiles, open_aio_channel, open_channel, resolve_target
from regionsearch.rpc.fanout import afan_out, chunked, fan_out, gather_or_cancel

__all__ = [
    "DEFAULT_POLICY",
    "CallPolicy",
    "ChannelConfig",
    "TlsFiles",
    "acall",
    "afan_out",
    "call",
    "chunked",
    "deadline",
    "fan_out",
    "gather_or_cancel",
    "open_aio_channel",
    "open_channel",
    "remaining",
    "resolve_target",
]
