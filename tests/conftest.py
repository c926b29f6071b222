from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

from tests.stack import Stack, new_stack

os.environ["COLUMNS"] = "200"  # rich reads the width once, when the command line is imported
# Tests call loopback addresses with clients of all kinds, which a proxy in the environment would take over.
for name in ("no_proxy", "NO_PROXY"):
    os.environ[name] = "127.0.0.1,localhost,::1"
# Several processes on a few cores compute with one thread each, and threads that wait do not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# A busy machine is not a failure, and the same commit gets the same answer; for other examples:
# pytest --hypothesis-profile=default
hypothesis.settings.register_profile(
    "repeatable",
    max_examples=50,
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")

# What makes a test more than a unit test: fixtures behind which processes of ours run or models are loaded,
# modules that start processes, and folders whose tests run, train or measure models.
_FIXTURES = frozenset({"stack", "own_stack", "world", "up", "pocket", "backend", "manifest"})
_MODULES = frozenset({"subprocess", "multiprocessing"})
_FOLDERS = frozenset(
    {"segmenter", "embedder", "torch_runtime", "training", "evaluation", "benchmarks", "e2e"}
)


# The order of the files in a run of two processes (`make test`): one of them takes all that use the session's
# stack, so that it is started once; then come those that take longest, so that neither process waits for the
# other in the end. A file that is not here comes later; one that uses the stack has to be here.
_STACK_FILES = (
    "docs/test_readme.py",
    "loadtests/test_users.py",
    "evaluation/test_gateway.py",
    "e2e/test_ingest_and_search.py",
    "e2e/test_bad_input.py",
    "hostile/test_images_end_to_end.py",
    "hostile/test_grpc_requests.py",
    "gateway/test_pocket.py",
    "client/test_against_stack.py",
    "web/test_against_stack.py",
)
_LONG_FILES = (
    "e2e/test_crashes.py",
    "training/test_training.py",
    "evaluation/test_committed_metrics.py",
    "gateway/test_openapi.py",
    "common/test_architecture.py",
    "segmenter/test_zoom.py",
    "segmenter/test_service.py",
    "searcher/test_memory.py",
    "searcher/test_state_machine.py",
)
_ORDER = {f"tests/{name}": place for place, name in enumerate(_STACK_FILES + _LONG_FILES)}


class _Scheduling(LoadFileScheduling):
    """One process takes a file, or all files of the stack."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "stack" if file.removeprefix("tests/") in _STACK_FILES else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling | None:
    """Takes the place of `--dist loadfile`."""
    if config.getvalue("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False
    return _Scheduling(config, log)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without `stack`, does not even import folders of which every test is `stack`: most of that is torch."""
    deselected = "not (stack" in (config.option.markexpr or "")
    return True if deselected and collection_path.name in _FOLDERS and collection_path.is_dir() else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders tests, and marks them by what they use: `stack` and `browser` are not among the unit tests."""
    items.sort(key=lambda item: _ORDER.get(item.nodeid.partition("::")[0], len(_ORDER)))
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        imported = set(vars(item.module)) if isinstance(item, pytest.Function) else set()
        if fixtures & _FIXTURES or _MODULES & imported or item.path.parent.name in _FOLDERS:
            item.add_marker(pytest.mark.stack)
        if "browser" in fixtures:
            item.add_marker(pytest.mark.browser)
        file = item.nodeid.partition("::")[0]
        if "stack" in fixtures and file.removeprefix("tests/") not in _STACK_FILES:
            raise pytest.UsageError(
                f"{file} uses the session's stack: add it to _STACK_FILES of tests/conftest.py"
            )


def pytest_collection_finish() -> None:
    """Keeps the collector of garbage from going through all that was imported, again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """What was kept may go: libraries look for leaks at the end of the process."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All four processes with the pocket models, shared by the session. Use a collection of your own."""
    with new_stack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack
