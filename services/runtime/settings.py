"""Settings that all processes share: one frozen object, read once at the start.

Order of precedence: command line (``--port 0``), environment (``REGIONSEARCH_EMBEDDER_PORT``, nested with
``__``), the process's table in the TOML file that ``REGIONSEARCH_CONFIG`` names (``[embedder]``), defaults.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from regionsearch.rpc.channels import TlsFiles

CONFIG_VARIABLE = "REGIONSEARCH_CONFIG"
MIB = 1 << 20


class SettingsPart(BaseModel):
    """A group of settings within those of a process."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TlsSettings(SettingsPart):
    """Files in PEM format. A certificate and its key turn TLS on; a client CA makes it mutual."""

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: set both or neither")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs certificate and key: a client is only checked over TLS")
        return self


class ClientTlsSettings(SettingsPart):
    """TLS of the connections to other processes: PEM files."""

    enabled: bool = False
    ca: Path | None = Field(None, description="Trusted authorities; the system's when absent.")
    certificate: Path | None = Field(None, description="The process's own certificate, for mutual TLS.")
    key: Path | None = None

    def files(self) -> TlsFiles | None:
        """For the channels; None speaks plain text."""
        return TlsFiles(self.ca, self.certificate, self.key) if self.enabled else None


class ServiceSettings(BaseSettings):
    """Base of a process's settings; a subclass names its `process` and its own fields."""

    process: ClassVar[str]
    named_callers: ClassVar[bool] = (
        True  # whether callers, such as the gateway, name the caller that they call for
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(0, ge=0, le=65535, description="gRPC port; 0 picks a free one.")
    port_file: Path | None = Field(
        None, description="File to which the port is written once the process serves."
    )
    metrics_port: int = Field(0, ge=0, le=65535, description="Prometheus port; 0 disables it.")
    grace_s: float = Field(30.0, ge=0, description="Time limit for calls in flight at shutdown, seconds.")
    drain_delay_s: float = Field(
        0.5,
        ge=0,
        description="Time from reporting NOT_SERVING to refusing calls, in which clients switch to other "
        "replicas.",
    )
    max_message_bytes: int = Field(32 * MIB, gt=0, description="Largest message in either direction.")
    max_concurrent_calls: int = Field(
        2000,
        gt=0,
        description="Concurrent gRPC calls, streams included; more are refused at once. One caller may use "
        "no more than it leaves to others: half when alone.",
    )
    max_concurrent_bytes: int = Field(
        1024 * MIB,
        gt=0,
        description="Bytes of the requests of concurrent gRPC calls; more are refused at once. One caller "
        "may use no more than it leaves to others: half when alone.",
    )
    max_grpc_connections: int = Field(
        1000, gt=0, description="Open connections to the gRPC port; more are closed at once."
    )
    max_connection_age_s: float | None = Field(
        30.0,
        gt=0,
        description="Age at which connections are closed, ±10 %, so that clients find new replicas. Calls "
        "and streams in progress finish first.",
    )
    tls: TlsSettings = TlsSettings()
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Accepted API keys, separated by commas; without any, every caller is accepted."
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    otlp_endpoint: str | None = Field(
        None, description="OTLP endpoint for traces, such as http://collector:4317."
    )

    model_config = SettingsConfigDict(frozen=True, extra="forbid", cli_kebab_case=True)

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        return [key.strip() for key in value.split(",") if key.strip()] if isinstance(value, str) else value

    @field_validator("api_keys")
    @classmethod
    def _sendable_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, key in enumerate(keys, 1):
            if not all("!" <= character <= "~" for character in key.get_secret_value()):
                raise ValueError(
                    f"key {number} has characters that a header cannot carry: use ASCII letters, digits and "
                    "punctuation, without spaces"
                )
        return keys

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the TOML table."""
        environment = EnvSettingsSource(
            settings_cls, env_prefix=f"REGIONSEARCH_{cls.process.upper()}_", env_nested_delimiter="__"
        )
        return init_settings, environment, InitSettingsSource(settings_cls, _toml_table(cls.process))

    @classmethod
    def load(cls, arguments: Sequence[str] | None = None) -> Self:
        """Reads the settings of a starting process; for invalid ones prints the errors and exits with 2.

        Args:
            arguments: Command line without the program; that of this process when absent.
        """
        arguments = sys.argv[1:] if arguments is None else arguments
        try:
            if unknown := cls._unknown_variables():
                raise SettingsError(f"unknown setting {', '.join(unknown)}; --help lists all settings")
            program = cls.__module__.rpartition(".")[0] or getattr(
                sys.modules["__main__"].__spec__, "name", ""
            )
            return cls(_cli_parse_args=list(arguments), _cli_prog_name=f"python -m {program}")
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc'])) or cls.process}: {e['msg']}" for e in error.errors()]
        except (SettingsError, OSError, tomllib.TOMLDecodeError) as error:
            lines = [str(error)]
        print(f"{cls.process}: invalid settings", *lines, sep="\n  ", file=sys.stderr)
        raise SystemExit(2)

    @classmethod
    def _unknown_variables(cls) -> list[str]:
        """Environment variables with this process's prefix that match no setting; pydantic ignores them."""
        prefix = f"REGIONSEARCH_{cls.process.upper()}_"
        fields = {f"{prefix}{name}".upper() for name in cls.model_fields}
        return sorted(
            name
            for name in os.environ
            if name.upper().startswith(prefix)
            and prefix + name.upper().removeprefix(prefix).partition("__")[0] not in fields
        )


def _toml_table(process: str) -> dict[str, Any]:
    path = os.environ.get(CONFIG_VARIABLE)
    if not path:
        return {}
    with Path(path).open("rb") as file:
        table = tomllib.load(file).get(process, {})
    if not isinstance(table, dict):
        raise SettingsError(f"[{process}] in {path} must be a table")
    return table
