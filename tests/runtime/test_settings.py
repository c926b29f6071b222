"""Settings that do not exist are errors, wherever they are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.runtime.batch import BatchSettings
from tests.runtime.conftest import EchoSettings


class Settings(EchoSettings):
    """As those of the model services, without what they import."""

    precision: str = "fp32"
    batching: BatchSettings = BatchSettings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REGIONSEARCH_ECHO_PRECISON", "bf16"),
        ("REGIONSEARCH_ECHO_TSL__CERTIFICATE", "/tls/tls.crt"),
        ("REGIONSEARCH_ECHO_BATCHING__MAX_BTCH", "8"),
    ],
)
def test_a_misspelt_variable_is_named(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ignored in silence, the second one would be a service without TLS."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as caught:
        Settings.load([])
    assert caught.value.code == 2
    assert variable.rpartition("_")[2] in capsys.readouterr().err.upper()


@pytest.mark.parametrize("given", ["command line", "file"])
def test_a_misspelt_command_line_option_is_named(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--precison", "bf16"] if given == "command line" else []
    if given == "file":
        (tmp_path / "settings.toml").write_text('[echo]\nprecison = "bf16"\n')
        monkeypatch.setenv("REGIONSEARCH_CONFIG", str(tmp_path / "settings.toml"))
    with pytest.raises(SystemExit) as caught:
        Settings.load(arguments)
    assert caught.value.code == 2
    assert "precison" in capsys.readouterr().err


def test_variables_of_other_processes_and_nested_ones_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONSEARCH_SEARCHER_ENGINE", "milvus")
    monkeypatch.setenv("REGIONSEARCH_MODELS_DIR", "/models")
    monkeypatch.setenv("REGIONSEARCH_ECHO_BATCHING__MAX_BATCH", "8")
    monkeypatch.setenv("regionsearch_echo_precision", "bf16")
    settings = Settings.load([])
    assert (settings.batching.max_batch, settings.precision) == (8, "bf16")
