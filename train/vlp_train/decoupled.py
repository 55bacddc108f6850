"""DPL's forward pass, a reconstruction: prompts are read by a tower's tokens and are never tokens.

After "Decoupled Prompt Learning for Vision-Language Models" (arXiv:2308.10061), of which only the
abstract was at hand and no code exists: what it leaves open is chosen here.

Attention over tokens X and prompts P parts exactly into what X reads from X and what it reads from
P, mixed by the share λ that softmax gives to P, for each head and query:

    O = (1 - λ) A(Q, K_X, V_X) + λ A(Q, K_P, V_P),    logit λ = log Z_P - log Z_X

with Z the sum of the exponentials of the scores. Prompts as readers, the other two sub-processes,
are left out: P is new in every layer. A gate g a layer and head changes the share:

    exact   λ as it is: VPT-deep whose prompts are dropped after each layer
    bias    logit λ + g: prompts count exp(g) times
    fixed   λ = sigmoid(g), whatever the scores

Text: tokens are the whole hand-written sentence, so with a share of 0 a class is embedded as CLIP
does. With `dpl.condition.*` the prompts of a layer also depend on the sentence so far:
P + U D LN₁(x at end of text), U and D of low rank.

Legend: N rows, L tokens, n prompts, J prompted layers, h heads, d width, r rank.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp_deploy.formats.structures import Decoupled
from vlp_train.chunks import encode_in_chunks, fitting_rows
from vlp_train.clip import Block
from vlp_train.prompted import PromptedClip, Prompts


class DecoupledClip(PromptedClip):
    """A CLIP whose attention also reads prompts."""

    def image_features(self, pixels: Tensor, prompts: Prompts) -> Tensor:
        """L2-normalised image embeddings (B, D) of uint8 pixels (B, 3, S, S)."""
        visual = self.clip.visual
        x = visual.ln_pre(visual.embed(self.normalised(pixels)))
        read = self._reader(prompts, "visual", causal=False)
        for layer, block in enumerate(visual.transformer.blocks):
            x = read(x, layer, block)
        return F.normalize(visual.project(x).float(), dim=-1)

    def text_features(self, prompts: Prompts, *, plain: bool = False) -> Tensor:
        """Raw features (T·K, D) of the whole sentences; `plain` runs all 77 positions."""
        length = self._ids.shape[1] if plain else int(self._eot.max()) + 1
        rows = self._ids[:, :length], self._eot, None, None
        count = self.class_chunk
        if count is None:
            count = fitting_rows(self.clip.config.text, *rows, plain=True)  # runs all its tokens

        def encode(ids: Tensor, eot: Tensor, *_in_slots: Tensor | None) -> Tensor:
            return self._sentences(prompts, ids, eot)

        return encode_in_chunks(encode, *rows, count=count).float()

    def _sentences(self, prompts: Prompts, ids: Tensor, eot: Tensor) -> Tensor:
        """Raw features (N, D) of token rows (N, L)."""
        clip = self.clip
        x = clip.token_embedding(ids) + clip.positional_embedding[: ids.shape[1]]
        read = self._reader(prompts, "text", causal=True, eot=eot)
        for layer, block in enumerate(clip.transformer.blocks):
            x = read(x, layer, block)
        ends = x[torch.arange(len(x), device=x.device), eot]
        features: Tensor = clip.ln_final(ends) @ clip.text_projection
        return features

    def _reader(
        self, prompts: Prompts, tower: str, *, causal: bool, eot: Tensor | None = None
    ) -> "_Reader":
        assert isinstance(self.structure, Decoupled)
        condition = None
        if tower == "text" and "dpl.condition.down" in prompts:
            condition = prompts["dpl.condition.down"], prompts["dpl.condition.up"]
        return _Reader(
            prompts=prompts.get(f"dpl.{tower}_prompts"),
            gates=prompts.get(f"dpl.{tower}_gates"),
            mode=self.structure.mode,
            causal=causal,
            condition=condition,
            eot=eot,
        )


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Runs a tower's blocks, the first J of them with prompts beside the tokens."""

    prompts: Tensor | None  # (J, n, d)
    gates: Tensor | None  # (J, h)
    mode: str
    causal: bool
    condition: tuple[Tensor, Tensor] | None  # (J, r, d), (J, d, r)
    eot: Tensor | None  # (N,), where a condition is read

    def __call__(self, x: Tensor, layer: int, block: Block) -> Tensor:
        """(N, L, d) → (N, L, d)."""
        if self.prompts is None or layer >= len(self.prompts):
            x = block(x, causal=self.causal)
            return x
        x = x + self._attend(block.ln_1(x), layer, block)
        x = x + block.mlp(block.ln_2(x))
        return x

    def _attend(self, normed: Tensor, layer: int, block: Block) -> Tensor:
        attention, gates = block.attn, self.gates
        beside = attention.keys_values(block.ln_1(self._prompts(normed, layer)))
        gate = None if gates is None or self.mode == "exact" else gates[layer].view(1, -1, 1, 1)
        return attention.decoupled(
            normed, beside, gate, fixed=self.mode == "fixed", causal=self.causal
        )

    def _prompts(self, normed: Tensor, layer: int) -> Tensor:
        """(1 or N, n, d) for one layer."""
        assert self.prompts is not None
        prompts = self.prompts[layer][None]
        if self.condition is None or self.eot is None:
            return prompts
        ends = normed[torch.arange(len(normed), device=normed.device), self.eot]  # (N, d)
        down, up = (factor[layer] for factor in self.condition)
        return prompts + (ends @ down.T @ up.T)[:, None]
