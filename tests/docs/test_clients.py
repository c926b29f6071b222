"""The example programs in other languages, from a copy of the contract and against a stack."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
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


OPENAPI = """
import importlib, pkgutil, sys
import region_search_client as made

for module in pkgutil.walk_packages(made.__path__, made.__name__ + "."):
    importlib.import_module(module.name)
from region_search_client.api.images import add_images
from region_search_client.api.search import search
from region_search_client.models import AddImagesBody, SearchBody
from region_search_client.types import File

client = made.Client(sys.argv[1])
file = File(payload=open(sys.argv[2], "rb"), file_name="scene.jpg", mime_type="image/jpeg")
(added,) = add_images.sync("default", client=client, body=AddImagesBody(files=[file])).results
print(added.outcome.upper(), added.image_id)
body = SearchBody.from_dict({"query": {"text": "teapot"}, "page_size": 3})
for hit in search.sync("default", client=client, body=body).hits:
    print(hit.rank, f"{hit.score:.3f}", hit.image.name)
"""


@pytest.mark.slow
def test_a_client_generated_from_the_openapi_document(stack: Stack, tmp_path: Path) -> None:
    """By `pipx install openapi-python-client`; every module is imported."""
    need("openapi-python-client")
    (tmp_path / "config.yaml").write_text("post_hooks: []\n")
    url = f"http://127.0.0.1:{stack.http_port}"
    command = ["openapi-python-client", "generate", "--url", f"{url}/openapi.json", "--output-path", "made"]
    run([*command, "--config", "config.yaml"], tmp_path)
    program = [sys.executable, "-c", OPENAPI, url, str(SCENE)]
    assert_found(run(program, tmp_path, PYTHONPATH=str(tmp_path / "made")))
