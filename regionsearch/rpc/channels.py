"""Channels to one or many replicas: round robin over the healthy ones, retries, message caps."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

MIB = 1 << 20
DNS_PAUSE_S = 2  # shortest time between two look-ups of a service's name
SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "xds:")

# The server's answer decides whether a call ran: UNAVAILABLE means that it did not. CANCELLED, where the
# caller has not cancelled, is how a server that stops drops a call that came too late or outlived its grace;
# every write may be made twice. RESOURCE_EXHAUSTED is not here, because an oversized message is that too and
# would be sent again and again; `calls.py` retries overload where the server says when.
_RETRY = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}

# When gRPC sends a stream of requests again, it may lose one without a word: grpcio 1.85.1 on asyncio did so
# once in a hundred times. Who sends a stream counts its answers and begins it again.
_NOT_RETRIED = [
    {"service": "regionsearch.v1.SearchService", "method": "BulkUpsert"},
    {"service": "regionsearch.v1.SegmentService", "method": "SegmentStream"},
    {"service": "regionsearch.v1.RegionSearchService", "method": "IngestImages"},
]


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of a client.

    Attributes:
        ca: Whom to trust; the system's authorities when absent.
        certificate: Who we are, for mutual TLS.
        key: The certificate's private key.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True)
class ChannelConfig:
    """How to reach a service.

    Attributes:
        service: Full name (``regionsearch.v1.EmbedService``) whose health decides whether a replica gets
            calls; None sends calls to every replica that can be reached.
        tls: None speaks plain text.
        max_message_bytes: Cap of a message in both directions; equal to the servers'.
        proxy: http:// URL of the proxy to go through. Without one the connection is direct, whatever the
            environment says: its proxies are not meant to stand between the processes of one system.
        retries: Whether gRPC makes calls again that a server did not do.
        authority: The name to which the server's certificate is issued, where it is not the target's.
    """

    service: str | None = None
    tls: TlsFiles | None = None
    max_message_bytes: int = 32 * MIB
    proxy: str | None = None
    retries: bool = True
    authority: str | None = None


def resolve_target(target: str) -> str:
    """What gRPC takes for an address, a list of addresses or a name that stands for many.

    Args:
        target: ``host:port``; several of them separated by commas, for a fixed set of replicas; or any gRPC
            target, of which ``dns:///embedder:50052`` follows the name's addresses as replicas come and go.

    Returns:
        A gRPC target. Names in a list are resolved once, here.

    Raises:
        ValueError: An address has no port, or a name of a list cannot be resolved.
    """
    if target.startswith(SCHEMES):
        return target
    pairs = [split_address(address.strip()) for address in target.split(",")]
    if len(pairs) == 1:
        return f"dns:///{target.strip()}"
    found = [_resolve(host, port) for host, port in pairs]
    families = {family for family, _ in found}
    if len(families) > 1:
        raise ValueError(f"{target}: a list is either IPv4 or IPv6; use dns:/// with one name for both")
    return f"{families.pop()}:{','.join(address for _, address in found)}"


def split_address(address: str) -> tuple[str, str]:
    """Host and port of ``host:port``; ValueError for anything else."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ValueError(f"{address!r} is not an address: write host:port")
    return host.strip("[]"), port


def _resolve(host: str, port: str) -> tuple[str, str]:
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)}
    except OSError as error:
        raise ValueError(f"{host!r} cannot be resolved: {error}") from error
    best = min((ipaddress.ip_address(address) for address in addresses), key=lambda ip: ip.version)
    return ("ipv4", f"{best}:{port}") if best.version == 4 else ("ipv6", f"[{best}]:{port}")


def service_config(service: str | None = None) -> dict[str, Any]:
    """The service config: round robin, client-side health checks, retries of what a server did not do.

    Streams of requests are not retried.
    """
    config: dict[str, Any] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": [{}], "retryPolicy": _RETRY}, {"name": _NOT_RETRIED}],
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
    }
    if service is not None:
        config["healthCheckConfig"] = {"serviceName": service}
    return config


def channel_options(config: ChannelConfig) -> list[tuple[str, Any]]:
    """Channel arguments that go with the servers of this project."""
    proxy = ("grpc.http_proxy", config.proxy) if config.proxy else ("grpc.enable_http_proxy", 0)
    return [
        proxy,
        ("grpc.service_config", json.dumps(service_config(config.service))),
        ("grpc.enable_retries", int(config.retries)),
        # A call larger than this buffer is sent once and never retried: let every legal message fit.
        ("grpc.per_rpc_retry_buffer_size", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # A name is looked up again when a connection ends. gRPC would let half a minute pass between two such
        # looks, in which all replicas that it knows may have been replaced.
        ("grpc.dns_min_time_between_resolutions_ms", DNS_PAUSE_S * 1000),
        ("grpc.use_local_subchannel_pool", 1),  # two clients of one process balance their calls separately
        *([] if config.authority is None else [("grpc.default_authority", config.authority)]),
    ]


def _credentials(tls: TlsFiles) -> grpc.ChannelCredentials:
    read = [None if path is None else path.read_bytes() for path in (tls.ca, tls.key, tls.certificate)]
    return grpc.ssl_channel_credentials(*read)


def open_channel(target: str, config: ChannelConfig = ChannelConfig()) -> grpc.Channel:
    """A channel for threads. Close it after use; it is a context manager.

    Raises:
        ValueError: `target` cannot be understood (see :func:`resolve_target`).
    """
    options = channel_options(config)
    if config.tls is None:
        return grpc.insecure_channel(resolve_target(target), options)
    return grpc.secure_channel(resolve_target(target), _credentials(config.tls), options)


def open_aio_channel(
    target: str,
    config: ChannelConfig = ChannelConfig(),
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
) -> grpc.aio.Channel:
    """A channel for asyncio, made on the loop that uses it. Close it after use; it is a context manager.

    Raises:
        ValueError: `target` cannot be understood (see :func:`resolve_target`).
    """
    options = channel_options(config)
    if config.tls is None:
        return grpc.aio.insecure_channel(resolve_target(target), options, interceptors=interceptors)
    return grpc.aio.secure_channel(
        resolve_target(target), _credentials(config.tls), options, interceptors=interceptors
    )
