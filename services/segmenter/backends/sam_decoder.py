"""SAM's mask decoder, evaluated for many prompts on one image and only as far as the caller looks.

The answer is that of ``segment_anything.modeling.MaskDecoder`` up to the rounding of a different order of
summation, a few 1e-5 of logits. The published decoder differs from itself by as much when it is given one
prompt at a time instead of many. Bitwise equality would need its own products, which take 3.5 times as long
(measured on a CPU, bundled model). Three things make this one cheap:

* **Tokens are projected, not pixels.** In both cross attentions one side is a handful of tokens and the other
  the whole feature map. ``(W_q t) · (W_k x) = (W_k^T W_q t) · x``: carrying the key projection over to the
  tokens leaves one matrix product with the untouched map, where the published code projects the map three
  times for every prompt and layer.
* **The first layer is shared.** Before its first update the map is the same for every prompt of an image,
  so there it pays to project the map once, for all of them.
* **Masks are made on demand.** The quality of a mask depends on one token alone. Callers read ``ious``
  first and ask for the logits of the masks that they will keep; only those pay for the last attention of
  the mask tokens, the upscaling and the hypernetworks.
"""

# mypy: disable-error-code="no-untyped-call, no-any-return, union-attr"
# (parts of torch's modules and tensors are untyped)

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor

from services.torch_runtime.devices import to_device

_NOTHING = -32.0  # a logit far from any mask


class _CrossAttention:
    """Weights of one tokens-pixels attention, split by head.

    Shapes below: B prompts, T tokens, H heads, D channels a head, C channels of the map, P pixels of the map.
    """

    def __init__(self, module: Attention) -> None:
        self.heads = module.num_heads
        self.width = module.internal_dim // module.num_heads
        self.scale = 1.0 / math.sqrt(self.width)
        self.module = module

        def by_head(weight: Tensor) -> Tensor:
            return weight.unflatten(0, (self.heads, self.width))

        self.query = by_head(module.q_proj.weight)  # (H, D, C)
        self.query_bias = by_head(module.q_proj.bias)  # (H, D)
        self.key = by_head(module.k_proj.weight)
        self.value = by_head(module.v_proj.weight)
        self.out = by_head(module.out_proj.weight.t())

    def split(self, x: Tensor) -> Tensor:
        """(…, H * D) to (…, H, D)."""
        return x.view(*x.shape[:-1], self.heads, self.width)

    def tokens_read_map(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Tokens (B, T, C) attend to pixels (B or 1, P, C); returns (B, T, C)."""
        batch, count, _ = tokens.shape
        queries = self.split(self.module.q_proj(tokens) * self.scale)
        probes = torch.einsum("bthd,hdc->bhtc", queries, self.key).flatten(1, 2)
        # The key bias adds the same to every pixel, which softmax does not see.
        weights = torch.softmax(probes @ keys.transpose(1, 2), dim=-1)
        read = (weights @ values).unflatten(1, (self.heads, count))
        read = torch.einsum("bhtc,hdc->bthd", read, self.value).reshape(batch, count, -1)
        return self.module.out_proj(read + self.module.v_proj.bias)

    def tokens_read_projected(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As :meth:`tokens_read_map`, for one map projected beforehand: keys, values (H, P, D)."""
        batch, count, _ = tokens.shape
        queries = self.split(self.module.q_proj(tokens) * self.scale).permute(2, 0, 1, 3).flatten(1, 2)
        weights = torch.softmax(queries @ keys.transpose(1, 2), dim=-1)
        read = (weights @ values).unflatten(1, (batch, count)).permute(1, 2, 0, 3).flatten(2)
        return self.module.out_proj(read)

    def update_map(self, keys: Tensor, queries: Tensor, tokens_pe: Tensor, tokens: Tensor) -> Tensor:
        """Pixels `keys` (B or 1, P, C), seen as `queries`, attend to the tokens; returns keys + attention."""
        token_keys = self.split(self.module.k_proj(tokens_pe) * self.scale)
        probes = torch.einsum("bthd,hdc->bhtc", token_keys, self.query).flatten(1, 2)
        bias = torch.einsum("bthd,hd->bht", token_keys, self.query_bias).flatten(1)[..., None]
        return self._add_tokens(keys, probes @ queries.transpose(1, 2) + bias, tokens)

    def update_projected(self, keys: Tensor, queries: Tensor, tokens_pe: Tensor, tokens: Tensor) -> Tensor:
        """As :meth:`update_map`, for one map (1, P, C) whose queries (H, P, D) were projected beforehand."""
        batch, count, _ = tokens.shape
        token_keys = self.split(self.module.k_proj(tokens_pe) * self.scale).permute(2, 0, 1, 3).flatten(1, 2)
        scores = (token_keys @ queries.transpose(1, 2)).unflatten(1, (batch, count)).transpose(0, 1)
        return self._add_tokens(keys, scores.flatten(1, 2), tokens)

    def _add_tokens(self, keys: Tensor, scores: Tensor, tokens: Tensor) -> Tensor:
        batch, count, _ = tokens.shape
        weights = torch.softmax(scores.unflatten(1, (self.heads, count)), dim=2).flatten(1, 2)
        written = torch.einsum("bthd,hdc->bhtc", self.split(self.module.v_proj(tokens)), self.out).flatten(
            1, 2
        )
        # Every head's weights sum to 1, so that the bias may ride on the tokens.
        written = written + self.module.out_proj.bias / self.heads
        return torch.baddbmm(keys.expand(batch, -1, -1), weights.transpose(1, 2), written)


class Decoded:
    """The decoder's answer to a batch of prompts: the qualities at once, the masks on demand.

    Attributes:
        ious: Predicted IoU of each mask token, float32 (B, 1 + multimask outputs); token 0 is the one that
            answers unambiguous prompts.
    """

    def __init__(
        self, decoder: LazyMaskDecoder, tokens: Tensor, prompt: Tensor, keys: Tensor, keys_pe: Tensor
    ):
        self._decoder, self._tokens, self._prompt = decoder, tokens, prompt
        self._keys, self._keys_pe = keys, keys_pe
        quality = decoder.finish_tokens(tokens[:, :1], prompt[:, :1], keys, keys_pe)[:, 0]
        self.ious: Tensor = decoder.module.iou_prediction_head(quality).float()

    def logits(self, rows: Tensor, columns: Tensor, windows: NDArray[np.int64] | None = None) -> Tensor:
        """Mask logits of single masks.

        Args:
            rows: Index of the prompt of each mask, int64 (n,), ascending, on the host.
            columns: Mask token of each mask, int64 (n,), on the host.
            windows: See :class:`~services.segmenter.backends.base.Decoding`; the rest is not computed.

        Returns:
            float32 (n, 4 * map height, 4 * map width).
        """
        if rows.numel() == 0:
            height, width = self._decoder.map_size
            return self.ious.new_zeros((0, 4 * height, 4 * width))
        with self._decoder.precision():
            return self._draw(rows, columns, windows)

    def _draw(self, rows: Tensor, columns: Tensor, windows: NDArray[np.int64] | None) -> Tensor:
        # Chosen on the host, of a known number, in one copy to the device.
        prompts, inverse = torch.unique_consecutive(rows, return_inverse=True)
        parts, shape = [prompts, inverse, columns], self._decoder.map_size
        if windows is not None:
            cells, shape = self._decoder.cells(windows[prompts.numpy()])
            parts += [*torch.from_numpy(cells)]
        chosen = to_device(torch.cat(parts), self._keys.device)
        prompts, inverse, columns, *corners = chosen.split([len(part) for part in parts])
        masks = slice(1, 1 + self._decoder.module.num_mask_tokens)
        tokens, prompt, keys, keys_pe = (
            part if len(part) == len(prompts) else part.index_select(0, prompts)
            for part in (self._tokens[:, masks], self._prompt[:, masks], self._keys, self._keys_pe)
        )
        tokens = self._decoder.finish_tokens(tokens, prompt, keys, keys_pe)
        if not corners:
            return self._decoder.render(tokens, keys, inverse, columns, shape)
        tops, lefts = corners
        places = self._decoder.places(tops, lefts, shape)
        seen = keys.flatten(0, 1).index_select(0, places.flatten()).view(len(keys), -1, keys.shape[2])
        drawn = self._decoder.render(tokens, seen, inverse, columns, shape)
        return self._decoder.put(drawn, tops.index_select(0, inverse), lefts.index_select(0, inverse))


class LazyMaskDecoder:
    """Runs the weights of a Sam's mask decoder; see the module's description.

    Args:
        sam: The model whose ``mask_decoder`` and ``prompt_encoder`` are used. Its weights are not copied.
        precision: Makes the context that everything is computed in, such as ``torch.autocast``.
    """

    def __init__(
        self, sam: Sam, precision: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> None:
        self.precision = precision
        self.module = sam.mask_decoder
        self.map_size: tuple[int, int] = tuple(sam.prompt_encoder.image_embedding_size)
        transformer = self.module.transformer
        self._blocks: list[TwoWayAttentionBlock] = list(transformer.layers)
        self._reads = [_CrossAttention(block.cross_attn_token_to_image) for block in self._blocks]
        self._writes = [_CrossAttention(block.cross_attn_image_to_token) for block in self._blocks]
        self._final_read = _CrossAttention(transformer.final_attn_token_to_image)
        self._final_norm = transformer.norm_final_attn
        heads = [network.layers for network in self.module.output_hypernetworks_mlps]
        # Of each layer the weights (heads, in, out) and biases (heads, 1, out) of all hypernetworks.
        self._brush_layers = [
            (torch.stack([one.weight.t() for one in layer]), torch.stack([one.bias[None] for one in layer]))
            for layer in zip(*heads, strict=True)
        ]
        # (1, P, C), the same for every image.
        self._map_pe: Tensor = sam.prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2)

    def __call__(self, features: Tensor, sparse: Tensor, dense: Tensor) -> Decoded:
        """Decodes a batch of prompts on one image.

        Args:
            features: Image embedding (C, h, w).
            sparse: Prompt tokens (B, n, C) from the prompt encoder.
            dense: What the prompts add to the map: (1, C, 1, 1) when they add the same everywhere, or (B,
                C, h, w).

        Returns:
            The qualities, and a handle for the masks.
        """
        with self.precision():
            return self._decode(features, sparse, dense)

    def _decode(self, features: Tensor, sparse: Tensor, dense: Tensor) -> Decoded:
        special = torch.cat([self.module.iou_token.weight, self.module.mask_tokens.weight])
        prompt = torch.cat([special.expand(len(sparse), -1, -1), sparse], dim=1).to(features.dtype)
        keys = (features[None] + dense).flatten(2).transpose(1, 2).contiguous()
        keys_pe = keys + self._map_pe
        tokens = prompt
        for index, block in enumerate(self._blocks):
            shared = index == 0 and len(keys) == 1
            tokens, keys = self._run_block(index, block, tokens, prompt, keys, keys_pe, shared)
            keys_pe = keys + self._map_pe
        return Decoded(self, tokens, prompt, keys, keys_pe)

    def _run_block(
        self,
        index: int,
        block: TwoWayAttentionBlock,
        tokens: Tensor,
        prompt: Tensor,
        keys: Tensor,
        keys_pe: Tensor,
        shared: bool,
    ) -> tuple[Tensor, Tensor]:
        read, write = self._reads[index], self._writes[index]
        if block.skip_first_layer_pe:
            tokens = block.norm1(block.self_attn(q=tokens, k=tokens, v=tokens))
        else:
            with_pe = tokens + prompt
            tokens = block.norm1(tokens + block.self_attn(q=with_pe, k=with_pe, v=tokens))

        if shared:
            map_keys = read.split(read.module.k_proj(keys_pe)[0]).transpose(0, 1)
            map_values = read.split(read.module.v_proj(keys)[0]).transpose(0, 1)
            attended = read.tokens_read_projected(tokens + prompt, map_keys, map_values)
        else:
            attended = read.tokens_read_map(tokens + prompt, keys_pe, keys)
        tokens = block.norm2(tokens + attended)
        tokens = block.norm3(tokens + block.mlp(tokens))

        if shared:
            map_queries = write.split(write.module.q_proj(keys_pe)[0]).transpose(0, 1)
            keys = write.update_projected(keys, map_queries, tokens + prompt, tokens)
        else:
            keys = write.update_map(keys, keys_pe, tokens + prompt, tokens)
        return tokens, block.norm4(keys)

    def finish_tokens(self, tokens: Tensor, prompt: Tensor, keys: Tensor, keys_pe: Tensor) -> Tensor:
        """The transformer's last attention, for whichever tokens (B, n, C) are wanted."""
        return self._final_norm(tokens + self._final_read.tokens_read_map(tokens + prompt, keys_pe, keys))

    def cells(self, windows: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[int, int]]:
        """Windows (n, 4) of logits in cells of the map: tops and lefts (2, n), and one height and width."""
        low, high = windows[:, ::2] // 4, -(-windows[:, 1::2] // 4)
        height, width = (high - low).max(axis=0, initial=1).tolist()
        return np.minimum(low, np.array(self.map_size) - (height, width)).T.copy(), (height, width)

    def places(self, tops: Tensor, lefts: Tensor, shape: tuple[int, int]) -> Tensor:
        """Numbers of the cells inside of windows, int64 (R, height, width), counted through all R maps."""
        height, width = self.map_size
        first = (torch.arange(len(tops), device=tops.device) * height + tops) * width + lefts
        rows, columns = (torch.arange(length, device=tops.device) for length in shape)
        return first[:, None, None] + (rows * width)[:, None] + columns

    def put(self, drawn: Tensor, tops: Tensor, lefts: Tensor) -> Tensor:
        """Puts what was drawn of masks (n, h, w) in its place, given in cells; elsewhere they are empty."""
        count, *shape = drawn.shape
        whole = drawn.new_full((count, 4 * self.map_size[0], 4 * self.map_size[1]), _NOTHING)
        rows, columns = (
            4 * corner[:, None] + torch.arange(length, device=drawn.device)
            for corner, length in zip((tops, lefts), shape, strict=True)
        )
        each = torch.arange(count, device=drawn.device)[:, None, None]
        return whole.index_put_((each, rows[:, :, None], columns[:, None]), drawn)

    def render(
        self, tokens: Tensor, keys: Tensor, rows: Tensor, columns: Tensor, shape: tuple[int, int]
    ) -> Tensor:
        """Draws masks from finished mask tokens.

        Args:
            tokens: All mask tokens of some prompts (R, mask tokens, C).
            keys: Finished maps, or windows of them (R, height * width, C).
            rows: Which of the prompts each mask answers, int64 (n,).
            columns: Which mask token it is, int64 (n,).
            shape: Height and width of the maps.

        Returns:
            float32 logits (n, 4 * height, 4 * width).
        """
        maps = self._upscale(keys)
        # Drawing a few masks too many is cheaper than copying each mask's map to its side.
        brushes = self._hypernetworks(tokens.transpose(0, 1)).transpose(0, 1).to(maps.dtype)
        places = rows * tokens.shape[1] + columns
        drawn = (brushes @ maps.transpose(1, 2)).flatten(0, 1).index_select(0, places).float()
        height, width = shape
        # (n, h, w, 2, 2, 2, 2): each pixel became 2 x 2 twice.
        drawn = drawn.unflatten(1, (height, width, 2, 2, 2, 2)).permute(0, 1, 3, 5, 2, 4, 6)
        return drawn.reshape(len(places), 4 * height, 4 * width)

    def _hypernetworks(self, tokens: Tensor) -> Tensor:
        """Every mask token (mask tokens, R, C) through its own hypernetwork, all at once."""
        last = len(self._brush_layers) - 1
        for index, (weight, bias) in enumerate(self._brush_layers):
            tokens = torch.baddbmm(bias, tokens, weight)
            tokens = tokens if index == last else F.relu(tokens)
        return tokens

    def _upscale(self, keys: Tensor) -> Tensor:
        """``output_upscaling`` on (R, P, C); a stride-2 2 x 2 transposed convolution is a matrix product."""
        first, norm, activation, second, last_activation = self.module.output_upscaling
        x = _double(keys, first)  # (R, P * 4, C / 4)
        x = activation(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
        return last_activation(_double(x, second))  # (R, P * 16, C / 8)


def _double(x: Tensor, layer: torch.nn.ConvTranspose2d) -> Tensor:
    """Applies a 2 x 2 stride-2 transposed convolution to pixels (R, n, C_in); returns (R, n * 4, C_out)."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 * C_out, C_in)
    doubled = F.linear(x, weight, layer.bias.repeat(4))
    return doubled.unflatten(-1, (4, layer.out_channels)).flatten(1, 2)
