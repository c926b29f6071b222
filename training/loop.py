"""What the trainers share: the schedule, averaged weights, checkpoints that resume exactly, and the loop."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from timm.optim.muon import Muon
from torch import Tensor, nn

WARMUP_STEPS = 200
DECAY_SHARE = 0.6  # the last part of a run, in which the learning rate falls to zero

_DECAY = 0.02  # of weights
_BETAS = (0.9, 0.98)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up, stay, decay. The flat part lets a run be extended: resume it with more ``steps``."""
    decay = max(1, round(DECAY_SHARE * steps))
    return peak * min(1.0, (step + 1) / min(WARMUP_STEPS, max(1, steps // 10)), (steps - step) / decay)


@dataclass(frozen=True)
class Run:
    """What a trainer is asked for.

    Attributes:
        folder: of its checkpoint, which is resumed where there is one.
        steps: of the whole run, those before a resume included.
        batch_size: scenes or close-ups of a step.
        device: to train on.
        seed: of initial weights and batches.
    """

    folder: Path
    steps: int
    batch_size: int
    device: torch.device
    seed: int = 0


class AveragedWeights:
    """Exponential moving average of a module's weights and running statistics.

    Args:
        module: what is trained.
        decay: of the average once the run is long enough; less before, so that early averages are not stale.
    """

    def __init__(self, module: nn.Module, decay: float = 0.99) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves the average towards the module's present state."""
        share = 1 - min(self.decay, (step + 1) / (step + 10))
        averaged, present = self.module.state_dict(), module.state_dict()
        floats = [name for name, value in averaged.items() if value.is_floating_point()]
        torch._foreach_lerp_([averaged[name] for name in floats], [present[name] for name in floats], share)


def build_adamw(module: nn.Module, rate: float) -> torch.optim.Optimizer:
    """AdamW over the parameters that learn; vectors (biases, norms) do not decay."""
    matrices, vectors = _split(module.parameters())
    groups = [{"params": matrices, "weight_decay": _DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=_BETAS, foreach=True)


def build_muon(module: nn.Module, rate: float, plain: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for matrices and kernels, AdamW for the rest.

    Args:
        module: what is trained.
        rate: learning rate; Muon's steps are scaled to the size of AdamW's.
        plain: matrices that AdamW shall take: embeddings, and readouts whose rows are alike, which Muon
            would drive apart.
    """
    matrices, vectors = _split(module.parameters())
    apart = {id(parameter) for parameter in plain}
    groups = [
        {"params": [p for p in matrices if id(p) not in apart], "weight_decay": _DECAY},
        {"params": [p for p in matrices if id(p) in apart], "weight_decay": _DECAY, "use_fallback": True},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer = Muon(
        groups, lr=rate, nesterov=True, ns_steps=3, ns_coefficients="original", betas=_BETAS
    )
    return optimizer


def _split(parameters: Iterable[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices and kernels, and vectors, of the parameters that learn."""
    learning = [p for p in parameters if p.requires_grad]
    return [p for p in learning if p.ndim >= 2], [p for p in learning if p.ndim < 2]


def train(
    module: nn.Module,
    compute_loss: Callable[[int], tuple[Tensor, dict[str, float]]],
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    peak: float,
    checkpoint: Path,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    evaluate_every: int = 500,
    save_every: int = 50,
) -> nn.Module:
    """Trains a module and returns its averaged weights.

    Args:
        module: what is trained; ``compute_loss`` uses it.
        compute_loss: from the step's number to the loss and what to report. It draws its batch from the
            number alone, so that a resumed run sees the batches that an uninterrupted one would have seen.
        optimizer: of the module's parameters; its learning rate is set before every step.
        steps: of the whole run, those before a resume included.
        peak: learning rate of the flat part.
        checkpoint: file that the run resumes from where it exists, and writes to.
        evaluate: measures the averaged module; what it returns is reported.
        evaluate_every: steps between measurements.
        save_every: steps between checkpoints.
    """
    console = Console()
    averaged = AveragedWeights(module)
    first = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        module.load_state_dict(state["module"])
        averaged.module.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        console.print(f"resuming {checkpoint.name} at step {first}")

    def save(step: int) -> None:
        state = {
            "module": module.state_dict(),
            "averaged": averaged.module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
        }
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        temporary = checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(checkpoint)

    running: dict[str, float] = {}
    began = time.monotonic()
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        module.train()
        loss, report = compute_loss(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        averaged.update(module, step)
        for name, value in report.items():
            running[name] = value if name not in running else 0.95 * running[name] + 0.05 * value
        done = step + 1
        if done % 20 == 0 or done == steps:
            pace = (time.monotonic() - began) / (done - first)
            shown = "  ".join(f"{name} {value:.4f}" for name, value in running.items())
            console.print(f"step {done}/{steps}  {pace:.2f} s/step  {shown}", highlight=False)
        if evaluate and done % evaluate_every == 0:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in evaluate(averaged.module).items())
            console.print(f"step {done}/{steps}  held out: {shown}", highlight=False)
        if done % save_every == 0 or done == steps:
            save(done)
    return averaged.module
