"""Real processes: how they begin and end, and what they say of it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from datetime import datetime
from pathlib import Path

import grpc
import pytest

from regionsearch.v1 import embed_pb2, embed_pb2_grpc
from tests.runtime.conftest import REQUEST, echo_server

PROGRAM = textwrap.dedent(
    """
    import contextlib, threading, time
    from regionsearch.v1 import embed_pb2_grpc
    from services.runtime.batcher import Batcher, BatchSettings
    from services.runtime.server import (run)
    from tests.runtime.conftest import EMBED, EchoServicer, EchoSettings

    class Settings(EchoSettings):
        device_timeout_s: float = 60.0

    def device(parts):
        print('{"event": "begun"}', flush=True)
        if parts[0].prepared == "die":
            raise SystemExit
        if parts[0].prepared == "hang":
            threading.Event().wait()
        time.sleep(0.5)
        return parts

    @contextlib.asynccontextmanager
    async def lifespan(server):
        batching = BatchSettings(device_timeout_s=settings.device_timeout_s)
        batcher = Batcher("echo", batching, device=[device], on_fatal=server.fail)

        async def behave(request, context):
            await batcher.submit(request.texts[0], 1)

        server.add(embed_pb2_grpc.add_EmbedServiceServicer_to_server, EchoServicer(behave))
        yield
        await batcher.close()

    settings = Settings.load()
    run(settings, [EMBED], lifespan)
    """
)


def start(*arguments: str, program: str = PROGRAM) -> tuple[subprocess.Popen, dict]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"REGIONSEARCH_ECHO_PORT": "0"},
    )
    return process, json.loads(process.stdout.readline() or "{}")


def test_sigterm_ends_a_process_with_code_0_after_its_calls(tmp_path):
    process, said = start("--port-file", str(tmp_path / "port"))
    assert said["event"] == "serving"
    assert said["level"] == "info" and datetime.fromisoformat(said["timestamp"]).tzinfo, (
        "as every line of a log"
    )
    assert int((tmp_path / "port").read_text()) == said["port"]
    with grpc.insecure_channel(f"127.0.0.1:{said['port']}") as channel:
        call = embed_pb2_grpc.EmbedServiceStub(channel).EmbedTexts.future(
            REQUEST, timeout=60, wait_for_ready=True
        )
        assert json.loads(process.stdout.readline()) == {"event": "begun"}
        process.send_signal(signal.SIGTERM)
        assert len(call.result().truncated) == 2
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = [json.loads(line) for line in errors.splitlines()]
    assert {"listening", "stopped"} <= {line["event"] for line in lines}
    assert {line["process"] for line in lines} == {"echo"}


def test_logs_for_people_have_colours_on_terminals_only():
    program = textwrap.dedent(
        """
        import structlog
        from services.runtime.logs import configure_logging

        configure_logging("echo", style="console")
        structlog.get_logger().info("said")
        """
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True
    )
    assert "said" in done.stderr
    assert "\x1b" not in done.stderr


LOADING = textwrap.dedent(
    """
    import asyncio, contextlib, time
    from services.runtime.server import (run)
    from tests.runtime.conftest import EMBED, EchoSettings

    def load():
        print("{}", flush=True)
        time.sleep(60)

    @contextlib.asynccontextmanager
    async def lifespan(server):
        await asyncio.to_thread(load)
        yield

    run(EchoSettings.load(), [EMBED], lifespan)
    """
)


def test_sigterm_does_not_wait_for_a_model_that_is_being_loaded():
    process, _ = start(program=LOADING)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=50)
    assert process.returncode == 0


@pytest.mark.parametrize(("trouble", "reason"), [("die", "died"), ("hang", "has not answered")])
def test_a_process_whose_device_is_lost_ends_with_code_1(trouble, reason):
    process, said = start("--device-timeout-s", "1")
    with grpc.insecure_channel(f"127.0.0.1:{said['port']}") as channel, pytest.raises(grpc.RpcError):
        embed_pb2_grpc.EmbedServiceStub(channel).EmbedTexts(
            embed_pb2.EmbedTextsRequest(texts=[trouble]), timeout=60
        )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert reason in errors


CLIENT = textwrap.dedent(
    """
    import sys, grpc
    from regionsearch.v1 import embed_pb2, embed_pb2_grpc

    with grpc.insecure_channel(sys.argv[1]) as channel:
        embed_pb2_grpc.EmbedServiceStub(channel).EmbedTexts(embed_pb2.EmbedTextsRequest(texts=["a"]))
    """
)


async def test_a_killed_client_leaves_no_work_behind():
    begun = asyncio.Event()

    async def hang(request, context):
        begun.set()
        await asyncio.Event().wait()

    async with echo_server(hang) as (server, _, servicer):
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, f"127.0.0.1:{server.port}", cwd=Path(__file__).parents[2]
        )
        await asyncio.wait_for(begun.wait(), 60)
        client.kill()
        await client.wait()
        await asyncio.wait_for(servicer.cancelled.wait(), 60)


def test_a_port_in_use_and_an_invalid_setting_are_reported_in_one_line():
    process, said = start()
    other, _ = start("--port", str(said["port"]))
    _, errors = other.communicate(timeout=60)
    assert other.returncode == 1
    assert "cannot start" in errors
    assert "Traceback" not in errors
    wrong, _ = start("--port", "70000")
    _, errors = wrong.communicate(timeout=60)
    assert wrong.returncode == 2
    assert "port" in errors
    process.terminate()
    process.communicate(timeout=60)
