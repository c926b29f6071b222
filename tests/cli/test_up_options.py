"""`regionsearch up` refuses what cannot be started, with the remedy, before it starts anything."""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from regionsearch.cli import app, main
from regionsearch.cli.running import choose_models, warn_if_open
from regionsearch.errors import RegionSearchError
from regionsearch.models.catalog import PROFILES
from regionsearch.supervisor import Plan, Supervisor
from regionsearch.supervisor.plan import reachable
from tests.models.conftest import Publisher, models, publisher  # noqa: F401 (fixtures)
from tests.runtime.test_server import ipv6_is_there
from tests.stack import free_port


@pytest.mark.parametrize(
    ("options", "files", "command"),
    [
        (
            ("--profile", "base"),
            "sam_vit_b_01ec64.pth and open_clip_vit_b_32_laion2b_s34b_b79k.safetensors",
            "regionsearch models pull base",
        ),
        (
            ("--segmenter", "sam3", "--embedder", "ViT-B-32"),
            "sam3.safetensors and config.json of facebook/sam3 and "
            "open_clip_vit_b_32_laion2b_s34b_b79k.safetensors",
            "regionsearch models pull sam3 ViT-B-32",
        ),
    ],
)
def test_all_missing_weights_are_named_at_once_with_one_command(
    options: tuple[str, ...], files: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REGIONSEARCH_MODELS_DIR", "HF_HUB_CACHE", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    result = CliRunner().invoke(app, ["up", "--data-dir", str(tmp_path / "data"), *options])
    assert isinstance(result.exception, RegionSearchError)
    assert result.exception.message == (
        f"{files} are not in {tmp_path}; get all that is missing with: {command}"
    )


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
@pytest.mark.parametrize("port", ["99999", "65536", "0", "-1"])
def test_an_invalid_port_is_refused_with_the_valid_range(option: str, port: str, tmp_path: Path) -> None:
    ports = {"--port": str(free_port()), "--grpc-port": str(free_port())} | {option: port}
    arguments = [part for pair in ports.items() for part in pair]
    result = CliRunner().invoke(app, ["up", "--data-dir", str(tmp_path / "data"), *arguments])
    assert isinstance(result.exception, RegionSearchError)
    assert f"{port} is not a valid port: choose one from 1 to 65535 with {option}" in str(result.exception)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("host", ["no such host", "a..b", "x" * 70])
def test_an_invalid_host_is_refused_naming_the_option(host: str, tmp_path: Path) -> None:
    options = ["--host", host, "--port", str(free_port()), "--data-dir", str(tmp_path / "data")]
    result = CliRunner().invoke(app, ["up", *options])
    assert isinstance(result.exception, RegionSearchError)
    assert "with --host" in str(result.exception)


def test_an_unusable_data_folder_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(folder: Path) -> str:
        result = CliRunner().invoke(app, ["up", "--data-dir", str(folder), "--port", str(free_port())])
        assert isinstance(result.exception, RegionSearchError), result.output
        return result.exception.message

    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deep")
    remedy = "choose another folder with --data-dir"
    for folder in (tmp_path / "file", tmp_path / "file" / "data"):
        assert refusal(folder) == f"{folder} cannot be used: it is not a folder; {remedy}"
    assert remedy in refusal(tmp_path / "link")
    (tmp_path / "full").mkdir()

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(Path, "mkdir", full)
        assert "No space left on device" in refusal(tmp_path / "new")
    usual, closed = os.access, tmp_path / "full"
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and usual(path, mode))
    assert "it cannot be written" in refusal(closed)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--profile", "huge"), "choose one of pocket, fast, base, large"),
        (("--profile", "base"), "regionsearch models pull base"),
        (("--segmenter", "sam_vit_l", "--embedder", "ViT-H-14"), "models pull sam_vit_l ViT-H-14"),
        pytest.param(
            ("--segmenter", "sam_vit_b", "--embedder", "ViT-B-16-SigLIP:webli"),
            "sam_vit_b_01ec64.pth and open_clip_vit_b_16_siglip_webli.safetensors and tokenizer_config.json "
            "of timm/ViT-B-16-SigLIP are not in",
            marks=pytest.mark.stack,  # imports open_clip, which knows its tokenizer
        ),
        (("--workers", "searcher=2"), "only segmenter and embedder"),
        (("--workers", "segmenter=0"), "at least one"),
        (("--workers", "many"), "--workers segmenter=2"),
        (("--workers", "segmenter=cuda:0;cuda:1"), "--workers segmenter=cuda:0,cuda:1"),
    ],
)
def test_what_cannot_be_started_says_why(
    options: tuple[str, ...], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGIONSEARCH_MODELS_DIR", str(tmp_path))
    result = CliRunner().invoke(app, ["up", "--data-dir", str(tmp_path / "data"), *options])
    assert isinstance(result.exception, RegionSearchError)
    assert reason in result.exception.message
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_a_port_in_use_is_refused_naming_its_option(option: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        ports = {"--port": free_port(), "--grpc-port": free_port()} | {option: taken.getsockname()[1]}
        arguments = [str(part) for pair in ports.items() for part in pair]
        result = CliRunner().invoke(app, ["up", "--data-dir", str(tmp_path), *arguments])
    assert isinstance(result.exception, RegionSearchError)
    assert f"another one with {option}" in result.exception.message


def test_an_address_of_another_machine_is_not_reported_as_a_taken_port(tmp_path: Path) -> None:
    options = ["--host", "203.0.113.1", "--port", str(free_port()), "--data-dir", str(tmp_path)]
    result = CliRunner().invoke(app, ["up", *options])
    assert isinstance(result.exception, RegionSearchError)
    assert "cannot listen on 203.0.113.1" in result.exception.message
    assert "in use" not in result.exception.message


@pytest.mark.skipif(not ipv6_is_there(), reason="this machine has no IPv6")
def test_an_address_of_ipv6(tmp_path: Path) -> None:
    plan = Plan(PROFILES["pocket"], tmp_path, free_port(), free_port(), "::1")
    assert Supervisor(plan, print).plan.host == "::1"
    assert reachable("::1") == "[::1]"
    assert reachable("::") == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "localhost"),
        ("0.0.0.0", "localhost"),
        ("192.168.1.5", "192.168.1.5"),
        ("::1", "[::1]"),
    ],
)
def test_the_address_that_is_shown_is_one_that_is_listened_on(host: str, shown: str, tmp_path: Path) -> None:
    assert Plan(PROFILES["pocket"], tmp_path, 8000, host=host).url == f"http://{shown}:8000"


def test_the_command_ends_with_a_line_and_1_on_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["regionsearch", "up", "--profile", "huge"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "error: there is no profile 'huge'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "key", "said"),
    [
        ("127.0.0.1", "", False),
        ("0.0.0.0", "", True),
        ("192.168.1.5", "", True),
        ("0.0.0.0", "secret", False),
    ],
)
def test_a_start_without_keys_for_other_machines_says_so(
    host: str, key: str, said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REGIONSEARCH_GATEWAY_API_KEYS", key)
    warn_if_open(host)
    captured = capsys.readouterr()
    assert ("may read, add and delete everything" in captured.out + captured.err) is said


def test_options_win_over_the_environment_and_this_over_the_profile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = PROFILES["base"]
    for role in ("SEGMENTER", "EMBEDDER"):
        monkeypatch.delenv(f"REGIONSEARCH_{role}_MODEL", raising=False)
    assert choose_models(base, None, None) is base
    (tmp_path / "settings.toml").write_text('[segmenter]\nmodel = "sam_vit_l"\n')
    monkeypatch.setenv("REGIONSEARCH_CONFIG", str(tmp_path / "settings.toml"))
    assert choose_models(base, None, None).segmenter == "sam_vit_l"
    monkeypatch.setenv("REGIONSEARCH_SEGMENTER_MODEL", "sam_vit_h")
    chosen = choose_models(base, None, "ViT-B-32:openai")
    assert (chosen.segmenter, chosen.embedder) == ("sam_vit_h", "ViT-B-32:openai")
    assert choose_models(base, "pocket", None).segmenter == "pocket"


def test_a_proposer_is_a_setting_of_the_segmenter_alone(tmp_path: Path) -> None:
    plan = Plan(PROFILES["pocket"], tmp_path, free_port(), free_port(), proposer="FastSAM-s.onnx")
    proposers = {child.name: child.settings.get("proposer") for child in Supervisor(plan, print)._children}
    assert proposers == {"segmenter": "FastSAM-s.onnx"} | dict.fromkeys(("embedder", "searcher", "gateway"))
