"""The example programs in other languages, from a copy of the contract and against a stack."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.stack import ROOT, Stack

SCENE = ROOT / "examples" / "scenes" / "scene-01.jpg"


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def run(command: list[str], folder: Path, **environment: str) -> str:
    result = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def copied(language: str, tmp_path: Path) -> Path:
    """The example alone with the contract, as somebody else's repository has it."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    source = ROOT / "examples" / "clients" / language
    left = shutil.ignore_patterns("node_modules", "gen", "dist", "regionsearch")
    return shutil.copytree(source, tmp_path / "examples" / "clients" / language, ignore=left)


def assert_found(output: str) -> None:
    """What each program prints: what became of the image, and hits with a place."""
    first, *hits = output.splitlines()
    assert re.fullmatch(r"(INGEST_OUTCOME_)?(CREATED|DUPLICATE) [0-9a-f]{64}", first)
    assert hits
    for rank, line in enumerate(hits, 1):
        assert re.match(rf"{rank} 0\.\d\d\d \S+", line)


@pytest.mark.slow
def test_typescript(stack: Stack, tmp_path: Path) -> None:
    need("buf", "tsc", "node", "protoc-gen-es", "npm")
    folder = copied("typescript", tmp_path)
    packages = run(["npm", "root", "--global"], folder).strip()
    (folder / "node_modules").symlink_to(packages)
    run(["buf", "generate"], folder)
    run(["tsc"], folder)
    assert_found(
        run(["node", "dist/find.js", f"http://127.0.0.1:{stack.grpc_port}", str(SCENE), "teapot"], folder)
    )


@pytest.mark.slow
def test_go(stack: Stack, tmp_path: Path) -> None:
    """With Debian's packages, whose gRPC of 2020 connects by other names; they come without modules."""
    need("buf", "go", "protoc-gen-go", "protoc-gen-go-grpc")
    folder = copied("go", tmp_path)
    run(["buf", "generate"], folder)
    program = folder / "find.go"
    text = program.read_text().replace('\t"google.golang.org/grpc/credentials/insecure"\n', "")
    new = "grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))"
    assert new in text
    program.write_text(text.replace(new, "grpc.Dial(address, grpc.WithInsecure())"))
    place = tmp_path / "path" / "src" / "example.com" / "find"
    place.parent.mkdir(parents=True)
    place.symlink_to(folder)
    environment = {
        "GO111MODULE": "off",
        "GOPATH": f"{tmp_path / 'path'}:/usr/share/gocode",
        "CGO_ENABLED": "0",
    }
    run(["go", "build", "-o", "find", "example.com/find"], folder, **environment)
    assert_found(run(["./find", f"127.0.0.1:{stack.grpc_port}", str(SCENE), "teapot"], folder))


@pytest.mark.slow
def test_java(stack: Stack, tmp_path: Path) -> None:
    need("buf", "javac", "java", "protoc", "grpc_java_plugin")
    folder = copied("java", tmp_path)
    (tmp_path / "bin").mkdir()  # Debian calls the plugin by another name
    (tmp_path / "bin" / "protoc-gen-grpc-java").symlink_to(shutil.which("grpc_java_plugin") or "")
    run(["buf", "generate"], folder, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    classpath = "/usr/share/java/*"
    sources = [str(path) for path in folder.rglob("*.java")]
    run(["javac", "-cp", classpath, "-d", "classes", *sources], folder)
    target = f"127.0.0.1:{stack.grpc_port}"
    assert_found(run(["java", "-cp", f"classes:{classpath}", "Find", target, str(SCENE), "teapot"], folder))
