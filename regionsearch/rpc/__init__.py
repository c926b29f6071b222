"""The caller's side of gRPC, for the client, the gateway and anybody who calls a service directly.

    channel = open_channel("dns:///embedder:50052", ChannelConfig(service="regionsearch.v1.EmbedService"))
    with channel, deadline(10):
        answer = call(EmbedServiceStub(channel).EmbedTexts, request)

``open_aio_channel`` (`channels`) and ``acall`` (`calls`) do the same on an event loop, where ``fan_out``
makes many calls at once.
"""
