"""The transformer of DETR: attention, encoder, decoder. Batch first; parameter names are the
official ones."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redetr.boxes import at_least_float32
from redetr.models.recompute import runner


def dropout(x: Tensor, p: float) -> Tensor:
    """`x` with a share `p` of its entries set to 0 and the others scaled, so that the mean stays.

    On a CPU, `F.dropout` draws one random number per entry, which takes a good part of a training
    step of DETR. Here 64 random bits decide about four entries (`p` is met to 2^-17).
    """
    if p in (0, 1) or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    bits = (
        torch.empty(-(-x.numel() // 4), dtype=torch.int64)
        .random_(-(2**63), 2**63 - 1)
        .view(torch.int16)
    )
    kept = bits[: x.numel()].view(x.shape) >= round(p * 2**16) - 2**15
    return x * kept.to(x.dtype).mul_(1 / (1 - p))


class Dropout(nn.Dropout):
    """`dropout` while training."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, p: float = 0.0
) -> Tensor:
    """Scaled dot-product attention over `[B, heads, N, d]`; `mask` (broadcast to `[B, heads, N,
    M]`) True = attend; `p` is the dropout of the weights.

    The one place where the kernel is chosen. On a CPU the product is written out, softmax in fp32,
    where the fused kernel is slow or missing: in bf16 its backward takes half of a training step,
    and with dropout there is none.
    """
    if q.device.type == "cpu" and (q.dtype == torch.bfloat16 or p > 0):
        scores = at_least_float32(q @ k.mT) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return dropout(scores.softmax(-1), p).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)


class MultiheadAttention(nn.Module):
    """Multi-head attention with the parameters of `torch.nn.MultiheadAttention`, on the kernel of
    `attention`."""

    def __init__(self, hidden_dim: int, nheads: int, dropout: float = 0.0):
        super().__init__()
        self.nheads = nheads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_dim, hidden_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_dim))
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.nheads, -1)).transpose(1, 2)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """`[B, N, D]` from `query` `[B, N, D]`, `key` and `value` `[B, M, D]`; `valid` `[B, M]`
        True = attend."""
        if query is key:  # self-attention: one product for both projections
            split = 2 * query.shape[-1]
            weights, biases = self.in_proj_weight, self.in_proj_bias
            q, k = F.linear(query, weights[:split], biases[:split]).chunk(2, dim=-1)
            v = F.linear(value, weights[split:], biases[split:])
        else:
            projections = zip(self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
            q, k, v = (
                F.linear(x, w, b)
                for x, (w, b) in zip((query, key, value), projections, strict=True)
            )
        mask = None if valid is None else valid[:, None, None, :]
        p = self.dropout if self.training else 0.0
        out = attention(self._heads(q), self._heads(k), self._heads(v), mask, p)
        return self.out_proj(out.transpose(1, 2).flatten(-2))


class TransformerEncoderLayer(nn.Module):
    def __init__(
        self, hidden_dim: int, nheads: int, dim_feedforward: int, dropout: float, pre_norm: bool
    ):
        super().__init__()
        self.self_attn = MultiheadAttention(hidden_dim, nheads, dropout)
        self.linear1 = nn.Linear(hidden_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.dropout = Dropout(dropout)
        self.pre_norm = pre_norm

    def _attend(self, x: Tensor, pos: Tensor, valid: Tensor | None) -> Tensor:
        query = x + pos
        return self.dropout(self.self_attn(query, query, x, valid))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.linear1(x).relu())))

    def forward(self, x: Tensor, pos: Tensor, valid: Tensor | None = None) -> Tensor:
        """The next `[B, S, D]`; `pos` `[B, S, D]` is added to queries and keys, `valid` `[B, S]`
        True = not padding."""
        if self.pre_norm:
            x = x + self._attend(self.norm1(x), pos, valid)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self._attend(x, pos, valid))
        return self.norm2(x + self._feed_forward(x))


class TransformerDecoderLayer(nn.Module):
    def __init__(
        self, hidden_dim: int, nheads: int, dim_feedforward: int, dropout: float, pre_norm: bool
    ):
        super().__init__()
        self.self_attn = MultiheadAttention(hidden_dim, nheads, dropout)
        self.multihead_attn = MultiheadAttention(hidden_dim, nheads, dropout)
        self.linear1 = nn.Linear(hidden_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)
        self.dropout = Dropout(dropout)
        self.pre_norm = pre_norm

    def _self_attend(self, x: Tensor, query_pos: Tensor) -> Tensor:
        query = x + query_pos
        return self.dropout(self.self_attn(query, query, x))

    def _cross_attend(
        self, x: Tensor, query_pos: Tensor, key: Tensor, memory: Tensor, valid: Tensor | None
    ) -> Tensor:
        return self.dropout(self.multihead_attn(x + query_pos, key, memory, valid))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.linear1(x).relu())))

    def forward(
        self, x: Tensor, query_pos: Tensor, key: Tensor, memory: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """The next queries `[B, Q, D]`; `key` is `memory` `[B, S, D]` plus its position
        encoding."""
        if self.pre_norm:
            x = x + self._self_attend(self.norm1(x), query_pos)
            x = x + self._cross_attend(self.norm2(x), query_pos, key, memory, valid)
            return x + self._feed_forward(self.norm3(x))
        x = self.norm1(x + self._self_attend(x, query_pos))
        x = self.norm2(x + self._cross_attend(x, query_pos, key, memory, valid))
        return self.norm3(x + self._feed_forward(x))


class TransformerEncoder(nn.Module):
    recompute = False

    def __init__(
        self,
        num_layers: int,
        hidden_dim: int,
        nheads: int,
        dim_feedforward: int,
        dropout: float,
        pre_norm: bool,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(hidden_dim, nheads, dim_feedforward, dropout, pre_norm)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_dim) if pre_norm else nn.Identity()

    def forward(self, x: Tensor, pos: Tensor, valid: Tensor | None = None) -> Tensor:
        run = runner(self.recompute)
        for layer in self.layers:
            x = run(layer, x, pos, valid)
        return self.norm(x)


class TransformerDecoder(nn.Module):
    def __init__(
        self,
        num_layers: int,
        hidden_dim: int,
        nheads: int,
        dim_feedforward: int,
        dropout: float,
        pre_norm: bool,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(hidden_dim, nheads, dim_feedforward, dropout, pre_norm)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(
        self, query_pos: Tensor, memory: Tensor, pos: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """The normalised output of every layer, `[L, B, Q, D]`; the content of the queries starts
        at zero."""
        x, key, states = torch.zeros_like(query_pos), memory + pos, []
        for layer in self.layers:
            x = layer(x, query_pos, key, memory, valid)
            states.append(self.norm(x))
        return torch.stack(states)


class Transformer(nn.Module):
    """Encoder and decoder of Carion et al. 2020, appendix A.3. Every matrix starts Xavier
    uniform."""

    def __init__(
        self,
        hidden_dim: int = 256,
        nheads: int = 8,
        enc_layers: int = 6,
        dec_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
    ):
        super().__init__()
        layer = (hidden_dim, nheads, dim_feedforward, dropout, pre_norm)
        self.encoder = TransformerEncoder(enc_layers, *layer)
        self.decoder = TransformerDecoder(dec_layers, *layer)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, features: Tensor, pos: Tensor, query_pos: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """Decoder states `[L, B, Q, D]` from `features` and `pos` `[B, S, D]` and `query_pos` `[B,
        Q, D]`."""
        return self.decoder(query_pos, self.encoder(features, pos, valid), pos, valid)


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU between them."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)
