"""The data folder belongs to one `regionsearch up` at a time, until the last of its processes has ended."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from regionsearch.errors import Kind, RegionSearchError, invalid

POLL_S = 0.2


class DataFolder:
    """A claim on a folder. It is a lock on the folder itself, so that claiming changes nothing in it.

    Child processes that inherit `descriptor` hold the claim too: where `up` was killed, the folder is taken
    until they have ended.

    Args:
        path: The folder; made if it does not exist.
        url: Where the processes will be reachable; named to others who want the folder.
        wait_s: How long to wait for processes whose `up` has ended already.
        report: Told when that begins.

    Attributes:
        descriptor: File descriptor of the open folder.

    Raises:
        RegionSearchError: FAILED_PRECONDITION when it is in use, INVALID_ARGUMENT when it cannot be used.
    """

    def __init__(self, path: Path, url: str, wait_s: float, report: Callable[[str], None]) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileExistsError, NotADirectoryError):
            raise _unusable(path, "it is not a folder") from None
        except OSError as error:
            raise _unusable(path, error.strerror or str(error)) from None
        try:
            self._lock(wait_s, report)
            if not os.access(path, os.W_OK | os.X_OK):
                raise _unusable(path, "it cannot be written")
        except BaseException:
            self.release()
            raise
        with suppress(OSError):  # a full disk; then others are told less
            self._owner.write_text(json.dumps({"pid": os.getpid(), "url": url}))

    @property
    def _owner(self) -> Path:
        return self.path / "up.json"

    def has_room(self) -> bool:
        """Whether anything can be written there."""
        return shutil.disk_usage(self.path).free > 0

    def release(self) -> None:
        """Gives the folder up, as far as this process is concerned."""
        os.close(self.descriptor)

    def _lock(self, wait_s: float, report: Callable[[str], None]) -> None:
        deadline = time.monotonic() + wait_s
        waiting = False
        while True:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid, url = self._read_owner()
                if _runs(pid) or time.monotonic() > deadline:
                    who = f"process {pid}, {url}" if pid else "another process"
                    message = f"{self.path} is in use by another `regionsearch up` ({who})"
                    remedy = "use that one, stop it, or choose another folder with --data-dir"
                    raise RegionSearchError(Kind.FAILED_PRECONDITION, f"{message}: {remedy}") from None
            except OSError:  # a network folder without locks; the searcher has a lock of its own
                return
            else:
                return
            if not waiting:
                waiting = True
                report("waiting for the processes of an earlier run to end")
            time.sleep(POLL_S)

    def _read_owner(self) -> tuple[int, str]:
        with suppress(OSError, ValueError, KeyError, TypeError):
            owner = json.loads(self._owner.read_text())
            return int(owner["pid"]), str(owner["url"])
        return 0, ""


def _runs(pid: int) -> bool:
    """Whether a process runs; one that is not known to have ended does."""
    if pid == 0:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _unusable(path: Path, reason: str) -> RegionSearchError:
    return invalid("data-dir", f"{path} cannot be used: {reason}; choose another folder with --data-dir")
