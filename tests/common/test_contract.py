"""The contract: stubs match the .proto files, and the files keep to the style."""

import shutil
import subprocess
from pathlib import Path

import pytest

from regionsearch.v1 import region_search_pb2, search_pb2, segment_pb2, types_pb2
from scripts.generate_protos import ROOT, generate


def test_committed_stubs_are_those_of_the_protos(tmp_path: Path) -> None:
    generate(tmp_path)
    fresh = {path.name: path.read_bytes() for path in (tmp_path / "regionsearch" / "v1").iterdir()}
    committed = {path.name: path.read_bytes() for path in (ROOT / "regionsearch" / "v1").glob("*_pb2*")}
    assert fresh == committed, "run `make protos` and commit the result"


@pytest.mark.parametrize("command", [["lint"], ["build", "-o", "contract.binpb"]], ids=["lint", "build"])
def test_buf_takes_a_copy_of_the_contract(command: list[str], tmp_path: Path) -> None:
    """Outside of this repository too, without what buf would have to fetch."""
    if shutil.which("buf") is None:
        pytest.skip("buf is not installed (npm install -g @bufbuild/buf)")
    copy = shutil.copytree(ROOT / "protos", tmp_path / "protos")
    result = subprocess.run(["buf", *command], cwd=copy, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_file_names_the_package_of_other_languages() -> None:
    for path in (ROOT / "protos" / "regionsearch").rglob("*.proto"):
        for option in ("go_package", "java_package", "java_multiple_files"):
            assert f"\noption {option} = " in path.read_text(), f"{path.name} lacks {option}"


@pytest.mark.parametrize("module", [types_pb2, segment_pb2, search_pb2, region_search_pb2])
def test_enums_begin_with_unspecified(module: object) -> None:
    for enum in module.DESCRIPTOR.enum_types_by_name.values():
        assert enum.values_by_number[0].name.endswith("_UNSPECIFIED")
