"""The health check of a container: `python -m services.runtime.probe embedder` exits 0 while it is serving.

It reads the same settings as the process, so that port and TLS are configured once. Over
TLS the certificate must be valid for the process's name, and under mutual TLS for clients too.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import ServiceSettings

TIMEOUT_S = 4.0


def probe(settings: ServiceSettings) -> bool:
    """Whether the process on this machine that was started with these settings serves."""
    address = f"127.0.0.1:{settings.port}"
    with _channel(address, settings) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
            )
        except grpc.RpcError as error:
            print(f"{settings.process} at {address}: {error.code().name}", file=sys.stderr)
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _channel(address: str, settings: ServiceSettings) -> grpc.Channel:
    tls = settings.tls
    direct = ("grpc.enable_http_proxy", 0)  # a container may have the proxies of its host in the environment
    if tls.certificate is None or tls.key is None:
        return grpc.insecure_channel(address, [direct])
    certificate, key = tls.certificate.read_bytes(), tls.key.read_bytes()
    trusted = tls.client_ca.read_bytes() if tls.client_ca else certificate
    credentials = grpc.ssl_channel_credentials(trusted, key, certificate)
    named = ("grpc.ssl_target_name_override", settings.process)
    return grpc.secure_channel(address, credentials, [direct, named])


def main() -> int:
    """Reads the process's name from the command line; the exit code is the answer."""
    if len(sys.argv) != 2:
        print("usage: python -m services.runtime.probe segmenter|embedder|searcher|gateway", file=sys.stderr)
        return 2

    class Probed(ServiceSettings):
        """The common settings of the process; its other settings are ignored."""

        process = sys.argv[1]
        model_config = SettingsConfigDict(frozen=True, extra="ignore")

    return 0 if probe(Probed()) else 1


if __name__ == "__main__":
    sys.exit(main())
