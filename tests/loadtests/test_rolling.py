"""Every process of a stack is restarted under load: the proof as its script runs it, with real processes."""

import shutil
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin"), reason="needs haproxy"
)
def test_a_rolling_restart_fails_no_request(tmp_path):
    command = [sys.executable, "-m", "loadtests.rolling", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "searcher-1" in done.stdout
