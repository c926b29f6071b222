"""The caller's side of gRPC, for the client, the gateway and anybody who calls a service directly.

    with open_channel("dns:///embedder:50052", ChannelConfig(service="regionsearch.v1.EmbedService")) as
    channel:
        with deadline(10):
            answer = call(EmbedServiceStub(channel).EmbedTexts, request)

``open_aio_channel`` and ``acall`` do the same on an event loop, where ``fan_out`` makes many calls at once.
"""

from regionsearch.rpc.calls import DEFAULT_POLICY, CallPolicy, acall, call, deadline, remaining
from regionsearch.rpc.channels import ChannelConfig, TlsFiles, open_aio_channel, open_channel, resolve_target
from regionsearch.rpc.fanout import chunked, fan_out, gather_or_cancel

__all__ = [
    "DEFAULT_POLICY",
    "CallPolicy",
    "ChannelConfig",
    "TlsFiles",
    "acall",
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
