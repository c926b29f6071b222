from __future__ import annotations

import functools
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regionsearch.errors import Kind, RegionSearchError
from services.torch_runtime.compiling import compiled


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that are compiled, by a compiler that takes no time."""
    made: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    return made


@torch.inference_mode()
def test_one_image_and_several_have_a_graph_each(graphs: list[torch.fx.GraphModule]) -> None:
    layer = nn.Conv2d(3, 4, 3)
    run = compiled(layer)
    for count in (1, 2, 8, 3, 1, 5):
        images = torch.randn(count, 3, 8, 8)
        torch.testing.assert_close(run(images), layer(images))
    assert len(graphs) == 2


def test_what_one_thread_has_compiled_another_runs(graphs: list[torch.fx.GraphModule]) -> None:
    """Models are warmed up in a thread that is not the device's."""
    run = compiled(nn.Linear(2, 2))

    @torch.inference_mode()
    def work() -> None:
        run(torch.ones(1, 2))

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(graphs) == 1


def test_a_compiler_that_is_missing_is_asked_for_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise FileNotFoundError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))

    def double(values: Tensor) -> Tensor:
        return values * 2

    with pytest.raises(RegionSearchError, match=r"no C\+\+ compiler found.*install") as caught:
        compiled(double)(torch.ones(1))
    assert caught.value.kind is Kind.FAILED_PRECONDITION
    assert caught.value.field == "compile"
