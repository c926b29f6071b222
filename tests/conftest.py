from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.stack import Stack, shared_stack

# Dozens of processes import the same modules; those that this one starts keep what they compile, too.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
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

# Files that take longest come first, so that in a run of several processes none waits for another in the end.
# The first two are not for the same process: one loads the shared stack, which the other does not use.
_LONG_FILES = (
    "tests/loadtests/test_users.py",
    "tests/e2e/test_crashes.py",
    "tests/training/test_training.py",
    "tests/docs/test_readme.py",
    "tests/e2e/test_ingest_and_search.py",
    "tests/searcher/test_state_machine.py",
    "tests/evaluation/test_committed_metrics.py",
    "tests/gateway/test_openapi.py",
    "tests/segmenter/test_parity.py",
    "tests/gateway/test_pocket.py",
    "tests/evaluation/test_gateway.py",
    "tests/common/test_architecture.py",
    "tests/segmenter/test_zoom.py",
    "tests/segmenter/test_service.py",
    "tests/searcher/test_memory.py",
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without `stack`, does not even import folders of which every test is `stack`: most of that is torch."""
    deselected = "not (stack" in (config.option.markexpr or "")
    return True if deselected and collection_path.name in _FOLDERS and collection_path.is_dir() else None


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _order(files: Iterable[str]) -> dict[str, float]:
    """The place of each file: long ones first, those of browsers spread over the others.

    A browser loads both cores while most others wait for a server: side by side, they take turns.
    """
    rest = [file for file in dict.fromkeys(files) if file not in _LONG_FILES]
    browsers = [file for file in rest if file.startswith("tests/web/")]
    others = [file for file in rest if file not in browsers]
    order: dict[str, float] = {file: place - len(_LONG_FILES) for place, file in enumerate(_LONG_FILES)}
    order |= {file: place for place, file in enumerate(others)}
    return order | {file: place * len(others) / len(browsers) for place, file in enumerate(browsers)}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders tests, and marks them by what they use: `stack` and `browser` are not among the unit tests."""
    order = _order([_file(item) for item in items])
    items.sort(key=lambda item: order[_file(item)])
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        imported = set(vars(item.module)) if isinstance(item, pytest.Function) else set()
        if fixtures & _FIXTURES or _MODULES & imported or item.path.parent.name in _FOLDERS:
            item.add_marker(pytest.mark.stack)
        if "browser" in fixtures:
            item.add_marker(pytest.mark.browser)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keeps the collector of garbage from going through all that is imported, again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    """What was kept may go: libraries look for leaks at the end of the process."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All four processes with the pocket models, shared by the whole run. Use a collection of your own."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "stack"
    folder.mkdir(exist_ok=True)
    with shared_stack(folder) as stack:
        yield stack
