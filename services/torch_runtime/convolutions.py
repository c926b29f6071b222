"""Trained convolutional networks, made faster; their answers change by rounding only."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(model: nn.Module) -> None:
    """Makes batch normalisations part of the convolutions before them, in place.

    The layers of an ``nn.Sequential`` are known to run one after the other. In other modules layers belong
    together by their names, such as ``conv1`` and ``bn1``; what is named differently stays as it is.

    Args:
        model: In evaluation mode, with weights of float32.
    """
    for block in model.modules():
        for (name, layer), (next_name, norm) in itertools.pairwise(list(block.named_children())):
            if not isinstance(layer, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            if isinstance(block, nn.Sequential) or next_name == name.replace("conv", "bn"):
                setattr(block, name, fuse_conv_bn_eval(layer, norm))
                # timm's normalisation includes the activation
                setattr(block, next_name, getattr(norm, "act", nn.Identity()))


def optimize_convolutions(model: nn.Module, *, pack: bool) -> None:
    """Folds batch normalisations and brings the weights of convolutions into their fastest layout, in place.

    Args:
        model: See :func:`fold_batch_norms`. Computes its maps channels-last where its input is.
        pack: Whether it runs on a CPU, in float32 and not compiled, and nowhere else; see
            :class:`PackedConvolution`.
    """
    fold_batch_norms(model)
    model.to(memory_format=torch.channels_last)
    if not pack or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for block in model.modules():
        for name, layer in list(block.named_children()):
            if (
                type(layer) is nn.Conv2d
                and layer.padding_mode == "zeros"
                and isinstance(layer.padding, tuple)
            ):
                setattr(block, name, PackedConvolution(layer))


class PackedConvolution(nn.Module):
    """A convolution on a CPU, by the operation that ``torch.compile`` uses for frozen weights.

    An ordinary one reorders its weights in each call, which takes half the time of a small batch, and does
    not use oneDNN at all for a kernel of 1 × 1 and few images in one thread.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self._options = layer.padding, layer.stride, layer.dilation, layer.groups
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(layer.weight, *self._options)
        self.bias = layer.bias

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, channels, height, width) float32 to maps, channels-last."""
        maps = maps.contiguous(memory_format=torch.channels_last)
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            maps, self.weight, self.bias, *self._options, "none", [], None
        )
        return out
