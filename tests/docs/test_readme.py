"""Every command of the README that talks to a running stack is run as it is printed, on other ports."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import json_format

from regionsearch.v1 import region_search_pb2
from tests.stack import ROOT, Stack

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", README, re.DOTALL)
NOT_HERE = ("make ", "docker ", "models pull", "grpcurl")  # run by hand, by other tests, or below


def commands() -> list[str]:
    """Shell commands, continuation lines joined."""
    lines = "".join(block for kind, block in BLOCKS if kind == "sh").replace("\\\n", " ").splitlines()
    return [re.sub(r" +", " ", line) for line in lines if line and not any(word in line for word in NOT_HERE)]


def here(text: str, stack: Stack) -> str:
    """The same command on this stack."""
    text = text.replace(".venv/bin/regionsearch", f"{shlex.quote(sys.executable)} -m regionsearch.cli")
    text = text.replace("localhost:50050", f"127.0.0.1:{stack.grpc_port}")
    return text.replace("localhost:8000", f"127.0.0.1:{stack.http_port}")


@pytest.mark.parametrize("command", [c for c in commands() if " up " not in c])
def test_shell_commands_of_the_readme_work(command: str, stack: Stack, tmp_path: Path) -> None:
    scenes = tmp_path / "examples" / "scenes"  # three of them: each takes a second
    scenes.mkdir(parents=True)
    for scene in sorted((ROOT / "examples" / "scenes").glob("*.jpg"))[:3]:
        (scenes / scene.name).symlink_to(scene)
    result = subprocess.run(
        here(command, stack),
        shell=True,
        cwd=tmp_path,
        env=os.environ | {"REGIONSEARCH_URL": stack.http, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    if "found.png" in command:
        assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    elif command.startswith("curl"):
        assert "code" not in json.loads(result.stdout), result.stdout
    else:
        assert result.stdout.strip() or result.stderr.strip()


@pytest.mark.parametrize("code", [block for kind, block in BLOCKS if kind == "python"])
def test_python_examples_of_the_readme_work(code: str, stack: Stack) -> None:
    result = subprocess.run(
        [sys.executable, "-c", here(code, stack)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    if "http://" in code:
        assert 1 <= len(lines) <= 3  # those that are confident
    else:
        assert "scene-01.jpg done" in lines
        assert lines[-1] != "scene-01.jpg done"  # there are hits, too


def test_grpcurl_asks_for_what_there_is() -> None:
    """grpcurl itself is not a Python package; what it sends must fit the contract."""
    lines = "".join(block for kind, block in BLOCKS if kind == "sh").replace("\\\n", " ").splitlines()
    calls = [shlex.split(line) for line in lines if line.startswith("grpcurl") and "-d" in line]
    assert calls
    for call in calls:
        service, method = call[-1].rsplit("/", 1)
        descriptor = region_search_pb2.DESCRIPTOR.services_by_name[service.rsplit(".", 1)[1]]
        request = descriptor.methods_by_name[method].input_type._concrete_class()
        json_format.Parse(call[call.index("-d") + 1], request)
