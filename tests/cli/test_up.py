"""`regionsearch up` over four fake processes: started, kept alive, stopped in order.

The real ones are killed in tests/e2e.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from regionsearch.cli import app
from regionsearch.errors import RegionSearchError
from regionsearch.models.catalog import WEIGHTS
from regionsearch.supervisor.child import Child
from tests.models.conftest import Publisher, models, publisher  # noqa: F401 (fixtures)
from tests.stack import ROOT, free_port
from tests.waiting import wait_for

WAIT_S = 120
ROLES = ("segmenter", "embedder", "searcher", "gateway")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


class Up:
    """One `regionsearch up` and the traces of its processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "up.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.http_port, self.grpc_port = free_port(), free_port()

    @property
    def url(self) -> str:
        return f"http://localhost:{self.http_port}"

    def start(self, *options: str, ready: bool = True) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.cli.fake_up", "up", "--data-dir", str(self.folder / "data")]
        command += ["--port", str(self.http_port), "--grpc-port", str(self.grpc_port), *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"FAKE_FOLDER": str(self.folder)}
            )
        if ready:
            wait_for(lambda: "is ready" in self.log.read_text(), "the ready line")
            self.all_four()
        return self.process

    def all_four(self) -> list[int]:
        """Waits for one process of each role; their ids."""
        wait_for(lambda: all(self.pids(role) for role in ROLES), "all four")
        return [pid for role in ROLES for pid in self.pids(role)]

    def pids(self, role: str) -> list[int]:
        """Of those that have said theirs: a file that is just being written is still empty."""
        found = [path.read_text() for path in sorted(self.folder.glob(f"{role}-*.pid"))]
        return [int(pid) for pid in found if pid]

    def settings(self, role: str) -> list[dict[str, str]]:
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob(f"{role}-*.settings"))]

    def end(self, how: signal.Signals = signal.SIGINT) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(WAIT_S)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path)
    try:
        yield up
    finally:
        if up.process is not None and up.process.poll() is None:
            up.process.kill()
            up.process.wait()


@pytest.mark.parametrize(
    ("profile", "segmenter", "embedder"),
    [("base", "sam_vit_b", "ViT-B-32"), ("fast", "mobile_sam", "MobileCLIP2-S0")],
)
def test_a_profile_runs_after_its_weights_were_pulled(
    up: Up,
    publisher: Publisher,  # noqa: F811
    models: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    profile: str,
    segmenter: str,
    embedder: str,
) -> None:
    """As `make run PROFILE=base` does."""
    for model in (segmenter, embedder):
        here = publisher.weights(publisher.digest)
        there = replace(WEIGHTS[model], url=here.url, sha256=here.sha256, size=len(publisher.data))
        monkeypatch.setitem(WEIGHTS, model, there)
    assert CliRunner().invoke(app, ["models", "pull", profile]).exit_code == 0
    assert CliRunner().invoke(app, ["models", "verify", profile]).exit_code == 0
    up.start("--profile", profile)
    assert f"segmenter {segmenter}, embedder {embedder}" in up.log.read_text()
    assert up.settings("segmenter")[0]["REGIONSEARCH_SEGMENTER_MODEL"] == segmenter
    assert up.settings("embedder")[0]["REGIONSEARCH_EMBEDDER_MODEL"] == embedder
    assert up.end() == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_the_gateway_first(up: Up, how: signal.Signals) -> None:
    up.start()
    pids = [pid for role in ROLES for pid in up.pids(role)]
    assert len(pids) == 4
    assert f"http://localhost:{up.http_port}" in up.log.read_text()
    assert up.end(how) == 0
    stopped = (up.folder / "stopped").read_text().split()
    assert stopped[0] == "gateway"
    assert sorted(stopped) == ["embedder", "gateway", "searcher", "segmenter"]
    assert not any(map(alive, pids))


def test_a_gateway_with_tls_becomes_ready_too(up: Up) -> None:
    (up.folder / "tls").touch()
    up.start()
    assert f"https://localhost:{up.http_port}" in up.log.read_text()
    assert up.end() == 0


def test_a_proxy_in_the_environment_does_not_keep_it_from_becoming_ready(
    up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    up.start()
    assert up.end() == 0


def test_the_processes_know_each_other(up: Up) -> None:
    up.start("--workers", "segmenter=cuda:0,cuda:1", "--other-embedder", "mine/embedder.json")
    wait_for(lambda: len(up.pids("segmenter")) == 2, "the second segmenter")
    gateway = up.settings("gateway")[0]
    segmenters = {f"127.0.0.1:{one['REGIONSEARCH_SEGMENTER_PORT']}" for one in up.settings("segmenter")}
    assert len(segmenters) == 2
    devices = sorted(one["REGIONSEARCH_SEGMENTER_DEVICE"] for one in up.settings("segmenter"))
    assert devices == ["cuda:0", "cuda:1"]
    assert "REGIONSEARCH_SEARCHER_DEVICE" not in up.settings("searcher")[0]
    assert set(gateway["REGIONSEARCH_GATEWAY_SEGMENTER"].split(",")) == segmenters
    assert up.settings("segmenter")[0]["REGIONSEARCH_SEGMENTER_MODEL"] == "pocket"
    wait_for(lambda: len(up.pids("embedder")) == 2, "the other embedder")
    embedders = {one["REGIONSEARCH_EMBEDDER_MODEL"]: one for one in up.settings("embedder")}
    for model, setting in (("pocket", "EMBEDDER"), ("mine/embedder.json", "OTHER_EMBEDDER")):
        port = embedders[model]["REGIONSEARCH_EMBEDDER_PORT"]
        assert gateway[f"REGIONSEARCH_GATEWAY_{setting}"] == f"127.0.0.1:{port}"
    assert up.settings("searcher")[0]["REGIONSEARCH_SEARCHER_EMBEDDED__FOLDER"].startswith(str(up.folder))
    assert not any(key.startswith("REGIONSEARCH_GATEWAY") for key in up.settings("embedder")[0])
    environment = Path(f"/proc/{up.pids('gateway')[0]}/environ").read_bytes()
    assert b"GRPC_VERBOSITY=NONE" in environment.split(b"\0")  # the C core's lines would not be JSON
    assert up.end() == 0


def test_a_process_that_dies_is_started_again(up: Up) -> None:
    up.start()
    (first,) = up.pids("embedder")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: up.pids("embedder") not in ([], [first]), "a new embedder")
    assert alive(up.pids("embedder")[0])
    assert "embedder ended with code -9" in up.log.read_text().replace("\n", " ")
    assert up.end() == 0


def test_with_the_demo_it_is_ready_when_there_is_something_to_find(up: Up) -> None:
    (up.folder / "hold").touch()
    up.start("--demo", ready=False)
    wait_for(lambda: (up.folder / "posted").exists(), "the first image")
    up.all_four()
    (first,) = up.pids("embedder")
    os.kill(first, signal.SIGKILL)
    wait_for(
        lambda: "embedder ended with code -9" in up.log.read_text().replace("\n", " "), "that it is seen"
    )
    assert "adding 20 demo images" in up.log.read_text()
    assert "is ready" not in up.log.read_text()
    (up.folder / "hold").unlink()
    wait_for(lambda: "curl -s" in up.log.read_text(), "what to try")
    said = up.log.read_text()
    said = said[said.index("adding 20 demo images") :]
    order = ["15 of 20 demo images", "20 added (40 regions)", "is ready", str(up.http_port), "curl -s"]
    assert [said.index(one) for one in order] == sorted(said.index(one) for one in order)
    summary = said[said.index("is ready") :]
    for where in ("/docs", f":{up.grpc_port}", str((up.folder / "data").resolve()), "Ctrl-C"):
        assert where in summary
    assert len((up.folder / "posted").read_text().split()) == 20
    assert up.end() == 0


def test_a_signal_while_the_demo_is_added_stops_all(up: Up) -> None:
    (up.folder / "hold").touch()
    up.start("--demo", ready=False)
    wait_for(lambda: (up.folder / "posted").exists(), "the first image")
    pids = up.all_four()
    assert up.end() == 0
    said = up.log.read_text()
    assert "stopping" in said
    assert "ready" not in said[said.index("adding 20") :]
    assert "could not be added" not in said
    assert not any(map(alive, pids))


def test_a_process_that_keeps_dying_stops_the_others(up: Up) -> None:
    (up.folder / "searcher.die").touch()
    process = up.start(ready=False)
    assert process.wait(WAIT_S) == 1
    said = up.log.read_text()
    assert "searcher ends again and again (last with code 3)" in said.replace("\n", " ")
    assert "searcher begins" in said  # the end of its log
    assert not any(map(alive, up.pids("segmenter") + up.pids("gateway")))


def test_the_processes_do_not_outlive_their_supervisor(up: Up) -> None:
    """Where it is killed, the gateway finishes its work first, with the services still there."""
    (up.folder / "gateway.drain").touch()
    process = up.start()
    pids = [pid for role in ROLES for pid in up.pids(role)]
    process.kill()
    process.wait()
    wait_for((up.folder / "gateway.draining").exists, "that the gateway is told to end")
    assert all(map(alive, pids))
    (up.folder / "gateway.drain").unlink()
    wait_for(lambda: not any(map(alive, pids)), "the end of all processes")
    stopped = (up.folder / "stopped").read_text().split()
    assert stopped[0] == "gateway"
    assert sorted(stopped) == ["embedder", "gateway", "searcher", "segmenter"]


def test_services_end_with_a_supervisor_that_has_no_gateway_at_the_moment(up: Up) -> None:
    (up.folder / "gateway.die").touch()
    process = up.start(ready=False)
    services = [pid for role in ROLES[:3] for pid in wait_for(lambda role=role: up.pids(role), role)]
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(alive, services)), "the end of the services")


def test_a_data_folder_in_use_is_refused_and_left_alone(up: Up) -> None:
    process = up.start()
    pids = up.all_four()

    def files() -> dict[str, tuple[int, int]]:
        found = {str(path): path.stat() for path in (up.folder / "data").rglob("*")}
        return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}

    before = files()
    for port in (up.http_port, free_port()):
        result = CliRunner().invoke(app, ["up", "--data-dir", str(up.folder / "data"), "--port", str(port)])
        assert isinstance(result.exception, RegionSearchError)
        assert f"in use by another `regionsearch up` (process {process.pid}, {up.url})" in str(
            result.exception
        )
    assert files() == before
    assert up.all_four() == pids
    assert up.end() == 0
    up.start()  # and it is free again
    assert up.end() == 0


def test_a_start_after_a_kill_waits_for_the_processes_that_still_end(up: Up) -> None:
    (up.folder / "gateway.drain").touch()
    process = up.start()
    process.kill()
    process.wait()
    up.start(ready=False)
    wait_for(lambda: "waiting for the processes of an earlier run" in up.log.read_text(), "that it waits")
    (up.folder / "gateway.drain").unlink()
    wait_for(lambda: "is ready" in up.log.read_text(), "the ready line")
    assert up.end() == 0


def test_unwritable_logs_do_not_prevent_a_start(up: Up) -> None:
    """As on a full disk."""
    (up.folder / "data").mkdir()
    (up.folder / "data" / "logs").touch()
    up.start()
    assert up.end() == 0


def test_the_last_words_of_a_process_are_one_sentence(tmp_path: Path) -> None:
    child = Child("searcher", "searcher", {}, tmp_path / "log")
    assert child.last_words() == ""
    traceback = "Traceback (most recent call last):\n  File x\nOSError: [Errno 28] No space left on device"
    logged = {"level": "error", "event": "cannot serve", "error": "the folder is locked"}
    unexpected = {"level": "error", "event": "cannot serve", "exception": traceback}
    info = {"level": "info", "event": "stopped", "failure": "unexpected error"}
    for lines, expected in [
        ([json.dumps(logged), json.dumps(info)], "cannot serve: the folder is locked"),
        (
            [json.dumps(unexpected), json.dumps(info)],
            "cannot serve: OSError: [Errno 28] No space left on device",
        ),
        ([json.dumps(info), traceback, "I1129 18:44:05 channel.cc] closed"], traceback.splitlines()[-1]),
        (["searcher begins"], "searcher begins"),
        ([json.dumps(info)], json.dumps(info)),
    ]:
        child.log.write_text("\n".join(lines) + "\n")
        assert child.last_words() == expected
