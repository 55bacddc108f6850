"""CLIP in plain PyTorch: pixels and token ids to features, prompts inserted as the papers say.

Same weights and state-dict keys as open_clip's `CLIP` (ViT image tower, CLIP's text tower),
attention through `scaled_dot_product_attention`. Nothing is folded here: exports are proven
against this module. An image tower that is no plain ViT is open_clip's own.

Legend: B images, N text rows, L tokens, d width of a tower, h heads, D joint width, J prompted
layers, m prompt tokens, p tokens that all rows share.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_deploy.formats.architecture import ClipConfig, TextTower, VisionTower, VisualLayout
from vlp_train.other_towers import image_tower

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

    def forward(self, x: Tensor, *, causal: bool) -> Tensor:
        """(N, L, d) → (N, L, d)."""
        query, keys, values = self._project(x)
        attended = F.scaled_dot_product_attention(query, keys, values, is_causal=causal)
        return self._merge(attended)

    def behind(self, before: KeysValues, x: Tensor, *, last_only: bool = False) -> Tensor:
        """`x` (N, L, d) attends causally to itself and wholly to `before`, (B, h, p, d/h) each.

        The rows are B equally long runs, one behind each prefix, whose keys and values are
        multiplied as they are, not copied for every row. With `last_only` the answer is the last
        token's, (N, 1, d).
        """
        query, keys, values = self._project(x)
        length = x.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        if last_only:
            query, future = query[:, :, -1:], future[-1:]
        query = query * query.shape[-1] ** -0.5
        shared = _times_shared(query, before[0].transpose(2, 3))  # (N, h, L, p)
        own = (query @ keys.transpose(2, 3)).masked_fill(future, -torch.inf)  # (N, h, L, L)
        weights = torch.cat([shared, own], dim=-1).softmax(dim=-1)
        shared, own = weights.split([shared.shape[-1], length], dim=-1)
        return self._merge(_times_shared(shared, before[1]) + own @ values)

    def decoupled(
        self, x: Tensor, beside: KeysValues, gate: Tensor | None, *, fixed: bool, causal: bool
    ) -> Tensor:
        """`x` (N, L, d) attends to itself, and apart from it to `beside`, (1 or N, h, m, d/h) each.

        Both answers are mixed by the share that softmax over all keys would give to `beside`. A
        `gate` (1, h, 1, 1) is added to the share's logit, or is that logit if it is `fixed`.
        """
        query, keys, values = self._project(x)
        query = query * query.shape[-1] ** -0.5
        scores = query @ keys.transpose(2, 3)  # (N, h, L, L)
        if causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        others = query @ beside[0].transpose(2, 3)  # (N, h, L, m)
        odds = others.logsumexp(-1, keepdim=True) - scores.logsumexp(-1, keepdim=True)
        if gate is not None:
            odds = gate.expand_as(odds) if fixed else odds + gate
        share = odds.sigmoid()  # (N, h, L, 1)
        own = scores.softmax(-1) @ values
        return self._merge((1 - share) * own + share * (others.softmax(-1) @ beside[1]))

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

    def _merge(self, attended: Tensor) -> Tensor:
        merged: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))  # (N, L, d)
        return merged


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

    def forward(self, x: Tensor, *, causal: bool) -> Tensor:
        """(N, L, d) → (N, L, d)."""
        x = x + self.attn(self.ln_1(x), causal=causal)
        x = x + self.mlp(self.ln_2(x))
        return x

    def behind(self, before: KeysValues, x: Tensor, *, last_only: bool = False) -> Tensor:
        """`forward`, causal, of rows behind prefixes they share; or of their last token."""
        attended = self.attn.behind(before, self.ln_1(x), last_only=last_only)
        x = (x[:, -1:] if last_only else x) + attended
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

    @property
    def blocks(self) -> list[Block]:
        """The blocks in order."""
        return cast(list[Block], list(self.resblocks))


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
        x = self.embed(pixels)
        if prompts is None or layout is None:
            prompts, layout = x.new_zeros(0, 0, x.shape[-1]), VisualLayout()
        length, depth = x.shape[1], len(prompts)
        if depth and layout.pre_ln:
            x = self.ln_pre(append_tokens(x, prompts[0]))
        elif depth:
            x = append_tokens(self.ln_pre(x), prompts[0])
        else:
            x = self.ln_pre(x)
        for index, block in enumerate(self.transformer.blocks):
            if 1 <= index < depth:
                x = append_tokens(x[:, :length], prompts[index])
            x = block(x, causal=False)
            if index == depth - 1 and not layout.survive_last:
                x = x[:, :length]
        return self.project(x)

    def embed(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) → class token and patches (B, L, d), before `ln_pre`."""
        x = self.conv1(pixels).flatten(2).transpose(1, 2)  # (B, patches, d)
        # shape[0], not len: an exporter must see that the batch may be of any size
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1)
        return x + self.positional_embedding

    def project(self, x: Tensor) -> Tensor:
        """Tokens behind the last block, (B, L, d) → raw features (B, D) of the class token."""
        features: Tensor = self.ln_post(x[:, 0]) @ self.proj
        return features


class Clip(nn.Module):
    """Both towers. `load_state_dict` takes an open_clip state dict of the same configuration."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        text = config.text
        # methods that reach into the image tower are refused any other than a plain ViT
        self.visual = cast(
            VisionTransformer,
            VisionTransformer(config) if config.other is None else image_tower(config),
        )
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
        with_prompts = () if prompts is None else (prompts, layout)
        features: Tensor = self.visual(pixels, *with_prompts)
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
        `prompts[l, j]` before layer l < J. `prompts` are (J, m, d), or (J, N, m, d) for contexts of
        each row's own.
        """
        eot = ids.argmax(dim=-1) if eot is None else eot
        rows = _Rows(ids, slots, prompts)
        x = self._embed(rows)
        for index, block in enumerate(self.transformer.blocks):
            x = block(rows.before_layer(index, x), causal=self.config.text.causal)
        return self._project_text(x[torch.arange(len(x), device=x.device), eot])

    def encode_text_fast(
        self, ids: Tensor, eot: Tensor, slots: Tensor | None = None, prompts: Tensor | None = None
    ) -> Tensor:
        """`encode_text`, exactly, with less work: values and gradients are the same.

        The mask is causal, so tokens after a row's end of text are never read: rows of equal length
        are grouped and cut there. The leading tokens that all rows share run once, and the rest of
        each row attends to their keys and values. The last block computes the end of text only.
        Without a causal mask there is no such short cut.
        """
        if not self.config.text.causal:
            return self.encode_text(ids, eot, slots, prompts)
        shared = shared_prefix(ids, eot, slots, prompts)  # p
        rows = _Rows(ids, slots, prompts)
        prefix = rows.cut(torch.arange(1, device=ids.device), slice(0, shared))
        return self._encode_behind(prefix, rows, eot)[0]

    def encode_text_each(self, ids: Tensor, eot: Tensor, slots: Tensor, prompts: Tensor) -> Tensor:
        """`encode_text_fast` for many sets of input prompts (B, m, d): (B, N, D).

        The rows, ids (N, L), are the same for all sets, and prompts stand in the leading tokens
        that all rows share, so that those run once for every set.
        """
        shared = shared_prefix(ids, eot, slots, None)  # p
        if (slots[:, shared:] >= 0).any():
            raise ValueError("learned tokens must stand in front of what tells the rows apart")
        prefix_ids, prefix_slots = (t[:1, :shared].expand(len(prompts), -1) for t in (ids, slots))
        prefix = _Rows(prefix_ids, prefix_slots, prompts[None])
        return self._encode_behind(prefix, _Rows(ids, None, None), eot)

    def _encode_behind(self, prefix: "_Rows", rows: "_Rows", eot: Tensor) -> Tensor:
        """`rows` (N, L) behind each of the prefixes (B, p): features (B, N, D)."""
        images, shared = prefix.ids.shape
        groups = [torch.nonzero(eot == end)[:, 0] for end in eot.unique()]  # G times (n,)
        suffixes = [rows.cut(group, slice(shared, int(eot[group[0]]) + 1)) for group in groups]
        x_prefix = self._embed(prefix)  # (B, p, d)
        x_suffixes = [  # G times (B·n, eot + 1 - p, d)
            self._embed(suffix)[None].expand(images, -1, -1, -1).flatten(0, 1)
            for suffix in suffixes
        ]
        for index, block in enumerate(self.transformer.blocks):
            x_prefix = prefix.before_layer(index, x_prefix)
            before = block.keys_values(x_prefix)
            last = index == self.config.text.layers - 1
            x_suffixes = [
                block.behind(before, suffix.before_layer(index, x), last_only=last)
                for suffix, x in zip(suffixes, x_suffixes, strict=True)
            ]
            if not last:
                x_prefix = block(x_prefix, causal=True)
        ends = [x[:, 0].unflatten(0, (images, -1)) for x in x_suffixes]  # G times (B, n, d)
        features = self._project_text(torch.cat(ends, dim=1))  # (B, N, D), group after group
        return features[:, torch.cat(groups).argsort()]

    def _embed(self, rows: "_Rows") -> Tensor:
        x = rows.overwritten(self.token_embedding(rows.ids), 0)
        embedded: Tensor = x + self.positional_embedding[rows.start : rows.start + x.shape[1]]
        return embedded

    def _project_text(self, x: Tensor) -> Tensor:
        features: Tensor = self.ln_final(x) @ self.text_projection
        return features


class _Rows:
    """Token rows, or a rectangle cut out of them, and the learned prompts that stand in them."""

    def __init__(
        self, ids: Tensor, slots: Tensor | None, prompts: Tensor | None, *, start: int = 0
    ) -> None:
        self.ids, self.start = ids, start
        self.slots = slots if slots is not None and bool((slots >= 0).any()) else None
        self.prompts = None if prompts is None or prompts.numel() == 0 else prompts
        if self.slots is not None and self.prompts is not None:
            self._where = (self.slots >= 0)[..., None]
            tokens = torch.arange(self.prompts.shape[-2], device=ids.device)
            self._choice = (self.slots[..., None] == tokens).to(self.prompts.dtype)  # (N, L, m)

    def cut(self, rows: Tensor, span: slice) -> "_Rows":
        """The given rows' tokens in `span`."""
        prompts = self.prompts
        if prompts is not None and prompts.ndim == 4:
            prompts = prompts[:, rows]
        slots = None if self.slots is None else self.slots[rows, span]
        return _Rows(self.ids[rows, span], slots, prompts, start=span.start)

    def before_layer(self, layer: int, x: Tensor) -> Tensor:
        """`x` (N, L, d) as block `layer` reads it; the first one's prompts are in the input."""
        return self.overwritten(x, layer) if layer else x

    def overwritten(self, x: Tensor, layer: int) -> Tensor:
        """`x` (N, L, d) with the prompts of a layer in their slots, if that layer has any."""
        if self.slots is None or self.prompts is None or layer >= len(self.prompts):
            return x
        # A product with one-hot rows, not an indexed read: on CPUs the gradient of the latter adds
        # up in an order that varies from run to run.
        learned = self._choice @ self.prompts[layer]
        return torch.where(self._where, learned.to(x.dtype), x)


def append_tokens(x: Tensor, prompts: Tensor) -> Tensor:
    """(B, L, d) and prompts (m, d), or (1 or B, m, d), behind each other: (B, L + m, d)."""
    return torch.cat([x, prompts.to(x.dtype).expand(x.shape[0], -1, -1)], dim=1)


def _times_shared(x: Tensor, shared: Tensor) -> Tensor:
    """x (B·n, h, L, a) times matrices (B, h, a, b) → (B·n, h, L, b), as B·h large products."""
    each = x.unflatten(0, (len(shared), -1)).transpose(1, 2)  # (B, h, n, L, a)
    product = (each.flatten(2, 3) @ shared).unflatten(2, each.shape[2:4])
    back: Tensor = product.transpose(1, 2).flatten(0, 1)
    return back


def shared_prefix(ids: Tensor, eot: Tensor, slots: Tensor | None, prompts: Tensor | None) -> int:
    """How many leading tokens are the same in all rows and lie before every end of text."""
    same = (ids == ids[:1]).all(dim=0)
    if slots is not None:
        same &= (slots == slots[:1]).all(dim=0)
        if prompts is not None and prompts.ndim == 4:  # every row has learned vectors of its own
            same &= (slots < 0).all(dim=0)
    return min(int(same.int().cumprod(dim=0).sum()), int(eot.min()))
