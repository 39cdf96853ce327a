"""The transformer of DETR: attention, encoder, decoder. Batch first, with the official names.

Shape letters: B images, S positions of the feature map, Q queries, D width, L decoder layers; in
attention N queries and M keys. Masks are True = padding, which attention ignores.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redetr.boxes import at_least_float32
from redetr.models.linear import Linear, linear
from redetr.models.recompute import runner

Activation = Callable[[Tensor], Tensor]

# Between the two matrices of a feed-forward net, by name. DETR has ReLU.
ACTIVATIONS: dict[str, Activation] = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def dropout(x: Tensor, p: float) -> Tensor:
    """Returns `x` with a share `p` of its entries set to 0 and the others scaled by 1 / (1 - p).

    On a CPU, `F.dropout` draws one random number per entry, which takes a good part of a training
    step of DETR. Here 64 random bits decide about four entries (`p` is met to 2^-17).
    """
    if p in (0, 1) or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    num_draws = -(-x.numel() // 4)  # rounded up
    draws = torch.empty(num_draws, dtype=torch.int64)
    draws = draws.random_(-(2**63), 2**63 - 1)
    # Each draw is read as four uniform integers of [-2^15, 2^15).
    bits = draws.view(torch.int16)
    bits = bits[: x.numel()].view(x.shape)
    threshold = round(p * 2**16) - 2**15
    kept = bits >= threshold
    scale = 1 / (1 - p)
    return x * kept.to(x.dtype).mul_(scale)


class Dropout(nn.Dropout):
    """Applies `dropout` while training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return dropout(x, self.p)


def attention(
    q: Tensor, k: Tensor, v: Tensor, ignored: Tensor | None = None, p: float = 0.0
) -> Tensor:
    """Returns scaled dot-product attention `[B, heads, N, d]`.

    `q` is `[B, heads, N, d]`, `k` and `v` are `[B, heads, M, d]`. `ignored` is a mask that
    broadcasts to `[B, heads, N, M]`; keys where it is True, such as padding, get no weight. `p` is
    the dropout of the weights.

    The only place where the kernel is chosen. On a CPU the product is written out, softmax in fp32,
    where the fused kernel is slow or missing: in bf16 its backward takes half of a training step,
    and with dropout there is none.
    """
    if q.device.type == "cpu" and (q.dtype == torch.bfloat16 or p > 0):
        head_dim = q.shape[-1]
        scores = at_least_float32(q @ k.mT) * head_dim**-0.5  # [B, heads, N, M]
        if ignored is not None:
            scores = scores.masked_fill(ignored, float("-inf"))
        weights = dropout(scores.softmax(-1), p)
        return weights.to(v.dtype) @ v

    # PyTorch's mask is the opposite: True = attend.
    attended = None if ignored is None else ~ignored
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attended, dropout_p=p)


def for_all_heads(ignored: Tensor) -> Tensor:
    """Returns the mask of `MultiheadAttention` so that it broadcasts to `[B, heads, N, M]`."""
    if ignored.dim() == 2:
        return ignored[:, None, None, :]
    return ignored[:, None]


class MultiheadAttention(nn.Module):
    """Multi-head attention by `attention`, with the parameters of `torch.nn.MultiheadAttention`."""

    def __init__(self, hidden_dim: int, nheads: int, dropout: float = 0.0):
        super().__init__()
        self.nheads = nheads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_dim, hidden_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_dim))
        self.out_proj = Linear(hidden_dim, hidden_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def _heads(self, x: Tensor) -> Tensor:
        """Splits the width: `[B, N, D]` to `[B, heads, N, D / heads]`."""
        x = x.unflatten(-1, (self.nheads, -1))  # [B, N, heads, d]
        return x.transpose(1, 2)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the projected query `[B, N, D]`, key and value `[B, M, D]`."""
        weights = self.in_proj_weight
        biases = self.in_proj_bias
        if query is key:
            # Self-attention: one product for both projections.
            split = 2 * query.shape[-1]
            query_and_key = linear(query, weights[:split], biases[:split])  # [B, N, 2 * D]
            q, k = query_and_key.chunk(2, dim=-1)
            v = linear(value, weights[split:], biases[split:])
            return q, k, v
        query_weight, key_weight, value_weight = weights.chunk(3)
        query_bias, key_bias, value_bias = biases.chunk(3)
        q = linear(query, query_weight, query_bias)
        k = linear(key, key_weight, key_bias)
        v = linear(value, value_weight, value_bias)
        return q, k, v

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, ignored: Tensor | None = None
    ) -> Tensor:
        """Returns `[B, N, D]` for `query` `[B, N, D]`, `key` and `value` `[B, M, D]`.

        `ignored` is True for keys that are ignored: `[B, M]` by all queries, such as padding, or
        `[B, N, M]` by each query.
        """
        q, k, v = self._project(query, key, value)
        if ignored is not None:
            ignored = for_all_heads(ignored)
        p = self.dropout if self.training else 0.0
        out = attention(self._heads(q), self._heads(k), self._heads(v), ignored, p)
        out = out.transpose(1, 2).flatten(-2)  # [B, heads, N, d] to [B, N, D]
        return self.out_proj(out)


class TransformerEncoderLayer(nn.Module):
    """Self-attention over the feature map, then a feed-forward net; each with a residual."""

    def __init__(
        self,
        hidden_dim: int,
        nheads: int,
        dim_feedforward: int,
        dropout: float,
        pre_norm: bool,
        activation: Activation = torch.relu,
    ):
        super().__init__()
        self.self_attn = MultiheadAttention(hidden_dim, nheads, dropout)
        self.linear1 = Linear(hidden_dim, dim_feedforward)
        self.linear2 = Linear(dim_feedforward, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.dropout = Dropout(dropout)
        self.pre_norm = pre_norm
        self.activation = activation

    def _attend(self, x: Tensor, pos: Tensor, padding: Tensor | None) -> Tensor:
        """Returns the self-attention of `x` `[B, S, D]`, after dropout."""
        query = x + pos
        attended = self.self_attn(query, query, x, padding)
        return self.dropout(attended)

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.linear1(x))  # [B, S, dim_feedforward]
        hidden = self.dropout(hidden)
        return self.dropout(self.linear2(hidden))

    def forward(self, x: Tensor, pos: Tensor, padding: Tensor | None = None) -> Tensor:
        """Returns the next features `[B, S, D]`.

        `pos` `[B, S, D]` is added to queries and keys; `padding` `[B, S]` is True = padding.
        """
        if self.pre_norm:
            x = x + self._attend(self.norm1(x), pos, padding)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self._attend(x, pos, padding))
        return self.norm2(x + self._feed_forward(x))


class TransformerDecoderLayer(nn.Module):
    """Self-attention of the queries, attention to the image, and a feed-forward net."""

    def __init__(
        self,
        hidden_dim: int,
        nheads: int,
        dim_feedforward: int,
        dropout: float,
        pre_norm: bool,
        activation: Activation = torch.relu,
    ):
        super().__init__()
        self.self_attn = MultiheadAttention(hidden_dim, nheads, dropout)
        self.multihead_attn = MultiheadAttention(hidden_dim, nheads, dropout)
        self.linear1 = Linear(hidden_dim, dim_feedforward)
        self.linear2 = Linear(dim_feedforward, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)
        self.dropout = Dropout(dropout)
        self.pre_norm = pre_norm
        self.activation = activation

    def _self_attend(self, x: Tensor, query_pos: Tensor) -> Tensor:
        query = x + query_pos
        attended = self.self_attn(query, query, x)
        return self.dropout(attended)

    def _cross_attend(
        self, x: Tensor, query_pos: Tensor, key: Tensor, memory: Tensor, padding: Tensor | None
    ) -> Tensor:
        query = x + query_pos
        attended = self.multihead_attn(query, key, memory, padding)
        return self.dropout(attended)

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.linear1(x))  # [B, Q, dim_feedforward]
        hidden = self.dropout(hidden)
        return self.dropout(self.linear2(hidden))

    def forward(
        self,
        x: Tensor,
        query_pos: Tensor,
        key: Tensor,
        memory: Tensor,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Returns the next queries `[B, Q, D]`.

        `query_pos` `[B, Q, D]` is added to the queries, `key` is `memory` `[B, S, D]` plus its
        position encoding, and `padding` `[B, S]` is that of the memory, True = padding.
        """
        if self.pre_norm:
            x = x + self._self_attend(self.norm1(x), query_pos)
            x = x + self._cross_attend(self.norm2(x), query_pos, key, memory, padding)
            return x + self._feed_forward(self.norm3(x))
        x = self.norm1(x + self._self_attend(x, query_pos))
        x = self.norm2(x + self._cross_attend(x, query_pos, key, memory, padding))
        return self.norm3(x + self._feed_forward(x))


class TransformerEncoder(nn.Module):
    """A stack of encoder layers, and a norm after the last one."""

    recompute = False

    def __init__(self, layers: list[TransformerEncoderLayer], norm: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, x: Tensor, pos: Tensor, padding: Tensor | None = None) -> Tensor:
        """Returns the encoded features `[B, S, D]`; arguments as those of a layer."""
        run = runner(self.recompute)
        for layer in self.layers:
            x = run(layer, x, pos, padding)
        return self.norm(x)


class TransformerDecoder(nn.Module):
    """A stack of decoder layers; a single norm is shared by all their outputs.

    With `norm_between`, a layer takes the normalised output of the one before it, and the last
    output is normalised twice. DETR has the norm for its heads only; Transformers applies it in
    this way in models with `auxiliary_loss`.
    """

    def __init__(
        self, layers: list[TransformerDecoderLayer], norm: nn.Module, norm_between: bool = False
    ):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.norm_between = norm_between

    def forward(
        self, query_pos: Tensor, memory: Tensor, pos: Tensor, padding: Tensor | None = None
    ) -> Tensor:
        """Returns the normalised output of every layer, `[L, B, Q, D]`.

        `query_pos` `[B, Q, D]` are the object queries, whose content starts at zero; `memory` and
        `pos` are `[B, S, D]`, and `padding` is `[B, S]`.
        """
        x = torch.zeros_like(query_pos)
        key = memory + pos  # the same for all layers
        states = []
        for layer in self.layers:
            x = layer(x, query_pos, key, memory, padding)
            normalised = self.norm(x)
            states.append(normalised)
            if self.norm_between:
                x = normalised
        if self.norm_between:
            states[-1] = self.norm(x)
        return torch.stack(states)


class Transformer(nn.Module):
    """Encoder and decoder of Carion et al. 2020, appendix A.3; matrices start Xavier uniform.

    `dec_nheads` and `dec_dim_feedforward` are those of the decoder, None = as in the encoder.
    `activation` is a name in `ACTIVATIONS`.
    """

    def __init__(
        self,
        hidden_dim: int = 256,
        nheads: int = 8,
        enc_layers: int = 6,
        dec_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
        activation: str = "relu",
        dec_nheads: int | None = None,
        dec_dim_feedforward: int | None = None,
        norm_between: bool = False,
    ):
        super().__init__()
        if dec_nheads is None:
            dec_nheads = nheads
        if dec_dim_feedforward is None:
            dec_dim_feedforward = dim_feedforward
        function = ACTIVATIONS[activation]
        encoder_layers = []
        for _ in range(enc_layers):
            encoder_layer = TransformerEncoderLayer(
                hidden_dim, nheads, dim_feedforward, dropout, pre_norm, function
            )
            encoder_layers.append(encoder_layer)
        encoder_norm = nn.LayerNorm(hidden_dim) if pre_norm else nn.Identity()
        self.encoder = TransformerEncoder(encoder_layers, encoder_norm)
        decoder_layers = []
        for _ in range(dec_layers):
            decoder_layer = TransformerDecoderLayer(
                hidden_dim, dec_nheads, dec_dim_feedforward, dropout, pre_norm, function
            )
            decoder_layers.append(decoder_layer)
        self.decoder = TransformerDecoder(decoder_layers, nn.LayerNorm(hidden_dim), norm_between)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, features: Tensor, pos: Tensor, query_pos: Tensor, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the decoder states `[L, B, Q, D]` and the encoded features `[B, S, D]`.

        `features` and `pos` are `[B, S, D]`, `query_pos` is `[B, Q, D]`, and `padding` `[B, S]` is
        True = padding.
        """
        memory = self.encoder(features, pos, padding)
        return self.decoder(query_pos, memory, pos, padding), memory


class MLP(nn.Module):
    """`num_layers` linear layers with an activation between them."""

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        num_layers: int,
        activation: Activation = torch.relu,
    ):
        super().__init__()
        self.activation = activation
        hidden_dims = [hidden_dim] * (num_layers - 1)
        dims = [input_dim, *hidden_dims, output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Returns `[..., output_dim]` for `x` `[..., input_dim]`."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)
