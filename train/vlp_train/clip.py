"""CLIP in plain PyTorch: pixels and token ids to features, prompts inserted as the papers say.

Same weights and state-dict keys as open_clip's `CLIP` (ViT image tower, CLIP's text tower),
attention through `scaled_dot_product_attention`. Nothing is folded here: exports are proven
against this module.

Legend: B images, N text rows, L tokens, d width of a tower, h heads, D joint width, J prompted
layers, m prompt tokens, p tokens that all rows share.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_deploy.architecture import ClipConfig, TextTower, VisionTower, VisualLayout

KeysValues = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head self-attention with packed input projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.normal_(self.in_proj_weight, std=width**-0.5)

    def forward(self, x: Tensor, *, causal: bool, before: KeysValues | None = None) -> Tensor:
        """`x` (N, L, d) attends to `before` (shared keys and values, (1, h, p, d/h)) and itself."""
        query, keys, values = self._project(x)
        mask = None
        if before is not None:
            keys = torch.cat([before[0].expand(len(x), -1, -1, -1), keys], dim=2)
            values = torch.cat([before[1].expand(len(x), -1, -1, -1), values], dim=2)
            if causal:  # row i sees the whole prefix and x[0..i]
                length, total = x.shape[1], keys.shape[2]
                everything = torch.ones(length, total, dtype=torch.bool, device=x.device)
                mask = everything.tril(diagonal=total - length)
        attended = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=causal and before is None
        )
        merged: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))  # (N, L, d)
        return merged

    def keys_values(self, x: Tensor) -> KeysValues:
        """(N, L, d) → keys and values (N, h, L, d/h)."""
        _, keys, values = self._project(x)
        return keys, values

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # (N, L, 3d)
        query, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in packed.chunk(3, -1)
        )
        return query, keys, values  # each (N, h, L, d/h)


class Mlp(nn.Module):
    """The transformer's two-layer perceptron."""

    def __init__(self, width: int, hidden: int, *, quick_gelu: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)
        self.quick_gelu = quick_gelu

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, d) → (N, L, d)."""
        hidden = self.c_fc(x)
        active = hidden * torch.sigmoid(1.702 * hidden) if self.quick_gelu else F.gelu(hidden)
        out: Tensor = self.c_proj(active)
        return out


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, tower: VisionTower | TextTower, *, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(tower.width)
        self.attn = Attention(tower.width, tower.heads)
        self.ln_2 = nn.LayerNorm(tower.width)
        self.mlp = Mlp(tower.width, tower.mlp_width, quick_gelu=quick_gelu)

    def forward(self, x: Tensor, *, causal: bool, before: KeysValues | None = None) -> Tensor:
        """(N, L, d) → (N, L, d)."""
        x = x + self.attn(self.ln_1(x), causal=causal, before=before)
        x = x + self.mlp(self.ln_2(x))
        return x

    def keys_values(self, x: Tensor) -> KeysValues:
        """What later tokens see of `x` in this block."""
        return self.attn.keys_values(self.ln_1(x))


class Transformer(nn.Module):
    """A stack of blocks; exists for open_clip's key names."""

    def __init__(self, tower: VisionTower | TextTower, *, quick_gelu: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            Block(tower, quick_gelu=quick_gelu) for _ in range(tower.layers)
        )


class VisionTransformer(nn.Module):
    """CLIP's image tower with optional deep visual prompts (VPT, arXiv:2203.12119, equation 6)."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        tower = config.vision
        self.conv1 = nn.Conv2d(3, tower.width, tower.patch_size, tower.patch_size, bias=False)
        scale = tower.width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(tower.width))
        self.positional_embedding = nn.Parameter(
            scale * torch.randn(1 + tower.patches, tower.width)
        )
        self.ln_pre = nn.LayerNorm(tower.width)
        self.transformer = Transformer(tower, quick_gelu=config.quick_gelu)
        self.ln_post = nn.LayerNorm(tower.width)
        self.proj = nn.Parameter(scale * torch.randn(tower.width, config.embed_dim))

    def forward(
        self, pixels: Tensor, prompts: Tensor | None = None, layout: VisualLayout | None = None
    ) -> Tensor:
        """Normalised pixels (B, 3, S, S) and prompts (J, m, d) → raw features (B, D).

        Before layer l < J the m prompt tokens are replaced by `prompts[l]`; after layer J - 1 they
        are dropped, or stay as ordinary tokens if `layout.survive_last`.
        """
        x = self.conv1(pixels).flatten(2).transpose(1, 2)  # (B, patches, d)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = x + self.positional_embedding
        if prompts is None or layout is None:
            prompts, layout = x.new_zeros(0, 0, x.shape[-1]), VisualLayout()
        length, depth = x.shape[1], len(prompts)
        if depth and layout.pre_ln:
            x = self.ln_pre(_append(x, prompts[0]))
        elif depth:
            x = _append(self.ln_pre(x), prompts[0])
        else:
            x = self.ln_pre(x)
        for index, block in enumerate(self.transformer.resblocks):
            if 1 <= index < depth:
                x = _append(x[:, :length], prompts[index])
            x = block(x, causal=False)
            if index == depth - 1 and not layout.survive_last:
                x = x[:, :length]
        features: Tensor = self.ln_post(x[:, 0]) @ self.proj
        return features


class Clip(nn.Module):
    """Both towers. `load_state_dict` takes an open_clip state dict of the same configuration."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        text = config.text
        self.visual = VisionTransformer(config)
        self.transformer = Transformer(text, quick_gelu=config.quick_gelu)
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(
            0.01 * torch.randn(text.context_length, text.width)
        )
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(
            text.width**-0.5 * torch.randn(text.width, config.embed_dim)
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def encode_image(
        self, pixels: Tensor, prompts: Tensor | None = None, layout: VisualLayout | None = None
    ) -> Tensor:
        """Normalised pixels (B, 3, S, S) → raw features (B, D)."""
        features: Tensor = self.visual(pixels, prompts, layout)
        return features

    def encode_text(
        self,
        ids: Tensor,
        eot: Tensor | None = None,
        slots: Tensor | None = None,
        prompts: Tensor | None = None,
    ) -> Tensor:
        """Token ids (N, L) → raw features (N, D), every token through every layer.

        `eot` (N,) is where the feature is read (default: the largest id, CLIP's end of text). Where
        `slots` (N, L) is j >= 0 the token is replaced by `prompts[0, j]` at the input and again by
        `prompts[l, j]` before layer l < J.
        """
        eot = ids.argmax(dim=-1) if eot is None else eot
        x = self._embed(ids, slots, prompts)
        for index, block in enumerate(self.transformer.resblocks):
            x = block(_prompted(x, slots, prompts, index), causal=True)
        return self._read(x, eot)

    def encode_text_fast(
        self, ids: Tensor, eot: Tensor, slots: Tensor | None = None, prompts: Tensor | None = None
    ) -> Tensor:
        """`encode_text`, exactly, with less work: values and gradients are the same.

        The mask is causal, so tokens after the last end of text are cut, and the leading tokens
        that all rows share run once with batch 1 while the rest of each row attends to their keys
        and values.
        """
        length = int(eot.max()) + 1
        ids = ids[:, :length]
        slots = None if slots is None else slots[:, :length]
        shared = _shared_prefix(ids, eot, slots)  # p
        x = self._embed(ids, slots, prompts)
        prefix, rest = x[:1, :shared], x[:, shared:]  # (1, p, d), (N, L - p, d)
        prefix_slots = None if slots is None else slots[:1, :shared]
        rest_slots = None if slots is None else slots[:, shared:]
        for index, block in enumerate(self.transformer.resblocks):
            prefix = _prompted(prefix, prefix_slots, prompts, index)
            rest = _prompted(rest, rest_slots, prompts, index)
            rest = block(rest, causal=True, before=block.keys_values(prefix))
            prefix = block(prefix, causal=True)
        return self._read(rest, eot - shared)

    def _embed(self, ids: Tensor, slots: Tensor | None, prompts: Tensor | None) -> Tensor:
        x = self.token_embedding(ids)
        if slots is not None and prompts is not None and len(prompts):
            x = _replace(x, slots, prompts[0])
        embedded: Tensor = x + self.positional_embedding[: ids.shape[1]]
        return embedded

    def _read(self, x: Tensor, eot: Tensor) -> Tensor:
        rows = torch.arange(len(x), device=x.device)
        features: Tensor = self.ln_final(x[rows, eot]) @ self.text_projection
        return features


def _append(x: Tensor, prompts: Tensor) -> Tensor:
    return torch.cat([x, prompts.to(x.dtype).expand(len(x), -1, -1)], dim=1)


def _prompted(x: Tensor, slots: Tensor | None, prompts: Tensor | None, layer: int) -> Tensor:
    """Deep text prompting: overwrite the slots before every prompted layer but the first."""
    if slots is None or prompts is None or not 1 <= layer < len(prompts):
        return x
    return _replace(x, slots, prompts[layer])


def _replace(x: Tensor, slots: Tensor, prompts: Tensor) -> Tensor:
    """x (N, L, d) with rows from `prompts` (m, d) where slots (N, L) is not -1."""
    if len(prompts) == 0:
        return x
    return torch.where((slots >= 0)[..., None], prompts[slots.clamp(min=0)].to(x.dtype), x)


def _shared_prefix(ids: Tensor, eot: Tensor, slots: Tensor | None) -> int:
    """How many leading tokens are the same in all rows and lie before every end of text."""
    same = (ids == ids[:1]).all(dim=0)
    if slots is not None:
        same &= (slots == slots[:1]).all(dim=0)
    return min(int(same.int().cumprod(dim=0).sum()), int(eot.min()))
