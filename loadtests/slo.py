"""What a stack promises, and whether a run kept it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Observed:
    """One kind of request over a run.

    Attributes:
        requests: How many.
        failures: How many of them failed.
        p50_ms: Median latency.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
    """

    requests: int
    failures: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Slo:
    """A service level objective.

    Attributes:
        error_budget: Part of all requests that may fail.
        p95_ms: By kind of request, the latency that 95 % must not exceed.
        generator_cpu: Part of a core above which the generator measures itself rather than the stack.
    """

    error_budget: float
    p95_ms: Mapping[str, float]
    generator_cpu: float

    @classmethod
    def load(cls, path: Path) -> Slo:
        """Reads a TOML file with these three names."""
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return cls(float(content["error_budget"]), content["p95_ms"], float(content["generator_cpu"]))

    def broken(self, observed: Mapping[str, Observed], cpu: Sequence[float]) -> list[str]:
        """What was not kept, in words; empty when all was.

        Args:
            observed: By kind of request. Kinds that were not part of the run are not judged, an empty run is.
            cpu: The use of their cores by all generators over time.
        """
        requests = sum(one.requests for one in observed.values())
        failures = sum(one.failures for one in observed.values())
        if not requests:
            return ["no request was made"]
        faults = []
        if failures > self.error_budget * requests:
            faults.append(
                f"{failures} of {requests} requests failed ({failures / requests:.2%}); "
                f"the error budget is {self.error_budget:.2%}"
            )
        faults += [
            f"{name}: p95 is {one.p95_ms:.0f} ms, promised are {self.p95_ms[name]:.0f} ms"
            for name, one in observed.items()
            if name in self.p95_ms and one.p95_ms > self.p95_ms[name]
        ]
        mean = sum(cpu) / len(cpu) if cpu else 0.0
        if mean > self.generator_cpu:
            faults.append(
                f"the generator used {mean:.0%} of its core: latencies are its own; "
                "lower the load or run more workers"
            )
        return faults
