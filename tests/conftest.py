from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

from tests.stack import Stack, new_stack

os.environ["COLUMNS"] = "200"  # rich reads the width once, when the command line is imported
# Tests call loopback addresses with clients of all kinds, which a proxy in the environment would take over.
for name in ("no_proxy", "NO_PROXY"):
    os.environ[name] = "127.0.0.1,localhost,::1"
# A busy machine is no failure, and the same commit gets the same answer; for other examples than last time:
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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by what they use: `stack` and `browser` are not among the unit tests."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        imported = set(vars(item.module)) if isinstance(item, pytest.Function) else set()
        if fixtures & _FIXTURES or _MODULES & imported or item.path.parent.name in _FOLDERS:
            item.add_marker(pytest.mark.stack)
        if "browser" in fixtures:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All four processes with the pocket models, shared by the session. Use a collection of your own."""
    with new_stack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack
