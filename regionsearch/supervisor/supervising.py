"""Starting the processes, keeping them alive, and stopping them in order."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import httpx

from regionsearch.supervisor.child import Child, Lifeline
from regionsearch.supervisor.data_folder import DataFolder
from regionsearch.supervisor.plan import HOST, Plan, reachable

POLL_S = 0.1
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 10.0
# A process that dies so often in a row, each time so soon, will not recover by being started again.
QUICK_DEATHS = 5
QUICK_DEATH_S = 60.0
STOP_S = 45.0  # a process drains for 30 s at most


class Supervisor:
    """Starts the processes of a plan and starts those again that die.

    Args:
        plan: What to start.
        report: Called with a line for the user now and then.

    Attributes:
        url: Where a browser on this machine finds the page, once the gateway is ready: whether it speaks TLS
            is for its own settings to say.

    Raises:
        RegionSearchError: INVALID_ARGUMENT when a port of the plan is taken, its folder cannot be used, or
            workers are asked for where there can be only one; FAILED_PRECONDITION when the folder is in use.
    """

    def __init__(self, plan: Plan, report: Callable[[str], None]) -> None:
        self.plan = plan
        self.url = plan.url
        self._report = report
        self._stopping = False
        plan.devices()
        if not plan.data_dir.exists():  # nothing is made before all else is found to be right
            plan.pick_ports()
        # Before the ports: starting it twice should be reported as that, and not as a port that is taken.
        self._folder = DataFolder(plan.data_dir, plan.url, STOP_S, report)
        try:
            self._children = self._plan_children(plan.pick_ports())
        except BaseException:
            self._folder.release()
            raise

    @property
    def stopping(self) -> bool:
        """Whether the end has begun."""
        return self._stopping

    def _plan_children(self, ports: Mapping[str, Sequence[int]]) -> list[Child]:
        plan, data = self.plan, self.plan.data_dir.resolve()
        logs = data / "logs"
        with contextlib.suppress(OSError):  # a full disk; then there are no logs
            logs.mkdir(exist_ok=True)
        settings = {
            "segmenter": {"model": plan.profile.segmenter}
            | ({"proposer": plan.proposer} if plan.proposer else {}),
            "embedder": {"model": plan.profile.embedder},
            "searcher": {"embedded__folder": str(data / "searcher")},
        }
        if plan.other_embedder:
            settings["other_embedder"] = {"model": plan.other_embedder}
        children, lifelines = [], []
        devices = plan.devices()
        for role, own in settings.items():
            for number, (port, device) in enumerate(zip(ports[role], devices[role], strict=True), 1):
                name = role if number == 1 else f"{role}-{number}"
                here = own | {"host": HOST, "port": str(port)} | ({"device": device} if device else {})
                program = "embedder" if role == "other_embedder" else role
                child = Child(name, program, here, logs / f"{name}.log", [self._folder.descriptor])
                with contextlib.suppress(AttributeError, OSError):  # not on Linux: then all end at once
                    lifeline = Lifeline()
                    child.inherits, child.end_with = [*child.inherits, lifeline.reader], lifeline.tie
                    lifelines.append(lifeline.writer)
                children.append(child)
        gateway = {role: ",".join(f"{HOST}:{port}" for port in ports[role]) for role in settings}
        gateway |= {"host": plan.host, "port": str(plan.grpc_port), "http_port": str(plan.http_port)}
        gateway |= {"image_store": str(data / "images"), "port_file": str(logs / "gateway.port")}
        self._serving = Path(gateway["port_file"])
        held = [self._folder.descriptor, *lifelines]
        return [*children, Child("gateway", "gateway", gateway, logs / "gateway.log", held)]

    def run(self, on_ready: Callable[[], None]) -> int:
        """Runs until a signal or until a process cannot be kept alive.

        Args:
            on_ready: Called once, when the gateway says that it is ready.

        Returns:
            The exit code: 0 after a signal, 1 after a failure.
        """
        ending = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup wants it
            ending.append(signal.SIGHUP)
        previous = {name: signal.signal(name, self._interrupt) for name in ending}
        code = 0
        try:
            for child in self._children:
                child.start()
            announced = False
            waiting_for = ""
            while not self._stopping:
                if not self._keep_alive():
                    code = 1
                    break
                if not announced:
                    ready, reason = self._readiness()
                    if ready:
                        announced = True
                        on_ready()
                    elif reason != waiting_for:
                        waiting_for = reason
                        self._report(reason)
                time.sleep(POLL_S)
        finally:
            self._stop_all()
            self._folder.release()
            for name, handler in previous.items():
                signal.signal(name, handler)
        return code

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:  # a second Ctrl-C: at once
            for child in self._children:
                if child.process is not None:
                    child.process.kill()
        self._stopping = True

    def _keep_alive(self) -> bool:
        """Starts again what has died; False when one process will not live."""
        now = time.monotonic()
        for child in self._children:
            if child.process is None:
                if now >= child.start_again_at:
                    child.start()
                continue
            code = child.process.poll()
            if code is None:
                continue
            child.process = None
            quick = now - child.started_at < QUICK_DEATH_S
            child.quick_deaths = child.quick_deaths + 1 if quick else 1
            if child.quick_deaths >= QUICK_DEATHS:
                self._report(f"{child.name} ends again and again (last with code {code}); its log says:")
                self._report(child.last_words() or "nothing")
                self._report(f"all of it: {child.log}")
                if not self._folder.has_room():
                    self._report(f"the disk of {self._folder.path} is full, for its log too: make room")
                return False
            delay = min(FIRST_DELAY_S * 2 ** (child.quick_deaths - 1), LONGEST_DELAY_S)
            child.start_again_at = now + delay
            self._report(f"{child.name} ended with code {code}; starting it again. Its log: {child.log}")
        return True

    def _readiness(self) -> tuple[bool, str]:
        try:
            host = reachable(self.plan.host)
            # No proxy of the environment stands between processes of one machine.
            response = httpx.get(f"http://{host}:{self.plan.http_port}/readyz", timeout=2, trust_env=False)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            # It understands no plain text, and may ask for a certificate that only its own clients have:
            # whether it serves is seen from its file.
            if not self._serving.exists():
                return False, "starting the processes"
            self.url = self.plan.url.replace("http:", "https:", 1)
            return True, ""
        except httpx.TransportError:
            return False, "starting the processes"
        if response.status_code == httpx.codes.OK:
            return True, ""
        with contextlib.suppress(ValueError, KeyError):
            services = response.json()["services"].items()
            waiting = [name for name, state in services if not state["ready"]]
            return False, f"waiting for {', '.join(waiting)}"
        return False, "starting the processes"

    def _stop_all(self) -> None:
        """The gateway first, so that no call is sent to a service that is leaving."""
        self._stopping = True
        self._report("stopping; work in progress is finished first")
        deadline = time.monotonic() + STOP_S
        gateway = [child for child in self._children if child.role == "gateway"]
        services = [child for child in self._children if child.role != "gateway"]
        for group in (gateway, services):
            running = [child.process for child in group if child.process is not None]
            for process in running:
                process.terminate()
            for process in running:
                try:
                    process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
