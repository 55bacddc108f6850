"""DCP's forward pass: prompts of both towers that attend to each other between the blocks.

Source: "Deeply Coupled Cross-Modal Prompt Learning" (arXiv:2305.17903), the CMPA module, as its
released code computes it. That code updates the visual prompts only; the paper's reading, in which
text prompts learn from images too, is trained with tensors below `cmpa_text.`.

The official forward takes the mean of the prompts' states over the images of a batch. Here
`structure.context` says what does: the images of a batch, the image itself, or constants that were
made of a data set (`freeze`).

Text prompts stand right behind start-of-text. Causal attention never lets them see a class name, so
their states are those of a prefix of 1 + n tokens and know no classes.

Legend: B images, N tokens of an image without prompts, n prompts, J coupled blocks, d_t and d_v the
towers' widths, d and d' those of one tower and the other.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from vlp_deploy.classes.tokenizer import START_OF_TEXT
from vlp_deploy.formats.structures import Coupled
from vlp_train.clip import Block, append_tokens
from vlp_train.prompted import PromptedClip, Prompts

Fusing = Literal["mean", "first", "max"]
VISUAL_HALF, TEXT_HALF = "cmpa", "cmpa_text"  # where the tensors of a half are


class CoupledClip(PromptedClip):
    """A CLIP with DCP's prompts, in the context that its structure names."""

    @property
    def coupled(self) -> Coupled:
        """The structure, with its own type."""
        assert isinstance(self.structure, Coupled)
        return self.structure

    def in_context(self, context: Literal["frozen", "per_sample", "batch"]) -> "CoupledClip":
        """The same model in another context."""
        other = copy(self)
        other.structure = msgspec.structs.replace(self.coupled, context=context)
        return other

    def image_features(self, pixels: Tensor, prompts: Prompts) -> Tensor:
        """L2-normalised image embeddings (B, D) of uint8 pixels (B, 3, S, S).

        In the context `batch` they depend on each other: all of them, or as many as the structure's
        `batch_size` at a time.
        """
        if self.coupled.context == "frozen":
            return super().image_features(pixels, prompts)
        size = self.coupled.batch_size or len(pixels)
        parts = [self.live(part, prompts)[0] for part in pixels.split(size)]
        return torch.cat(parts)

    def live(self, pixels: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Image embeddings (B, D), and the text prompts (1 or J + 1, n, d_t) that go with them.

        There are J + 1 layers of text prompts if images update them, which takes one context for
        the batch.
        """
        coupling, visual = Coupling.of(self, prompts), self.clip.visual
        prefix, texts = self._prefix(prompts), [prompts["text.prompts"]]
        x = visual.embed(self.normalised(pixels))  # (B, N, d_v)
        length = x.shape[1]
        x = visual.ln_pre(append_tokens(x, prompts["cmpa.visual_prompts"]))
        for index, block in enumerate(visual.transformer.blocks):
            if 1 <= index <= self.coupled.depth:
                own = self._fused(x[:, length:])  # (1 or B, n, d_v)
                own, prefix = coupling(index, own, prefix)
                x = append_tokens(x[:, :length], own)
                texts.append(prefix[:, 1:])
            x = block(x, causal=False)
            prefix = self._behind(index, prefix)
        features = F.normalize(visual.project(x).float(), dim=-1)
        return features, torch.cat(texts) if coupling.updates_text else texts[0]

    def references(self, prompts: Prompts, pixels: Tensor) -> dict[str, Tensor]:
        """`reference.logits` of the frozen context where there is one, else of single images.

        With both kinds of tensors also `reference.per_sample_logits`.
        """
        alone = self.in_context("per_sample")
        live = "cmpa.visual_prompts" in prompts
        if self.coupled.context != "frozen":
            return super(CoupledClip, alone).references(prompts, pixels)
        answers = super().references(prompts, pixels)
        if live:
            others = super(CoupledClip, alone).references(prompts, pixels)
            answers["reference.per_sample_logits"] = others["reference.logits"]
        return answers

    @torch.no_grad()
    def freeze(self, prompts: Prompts, batches: Callable[[], Iterable[Tensor]]) -> Prompts:
        """The context of a data set: `visual.prompts` (J + 1, n, d_v), constants for every block.

        Block after block, the states of the visual prompts are fused over all images, the blocks
        before having their constants already. `batches()` starts a pass over the images, uint8
        (B, 3, S, S). Where images update the text, `text.prompts` (J + 1, n, d_t) are there too.
        """
        coupling = Coupling.of(self, prompts)
        contexts, texts = [prompts["cmpa.visual_prompts"]], [prompts["text.prompts"][0]]
        prefix = self._prefix(prompts)
        for layer in range(1, self.coupled.depth + 1):
            prefix = self._behind(layer - 1, prefix)
            states = (self._states(pixels, contexts) for pixels in batches())
            own, prefix = coupling(layer, fused_over(states, self.coupled.fusing), prefix)
            contexts.append(own[0])
            texts.append(prefix[0, 1:])
        frozen = {"visual.prompts": torch.stack(contexts)}
        return frozen | ({"text.prompts": torch.stack(texts)} if coupling.updates_text else {})

    def _states(self, pixels: Tensor, contexts: list[Tensor]) -> Tensor:
        """The prompts' states (B, n, d_v) behind as many blocks as have their constants."""
        visual = self.clip.visual
        x = visual.embed(self.normalised(pixels))
        length = x.shape[1]
        x = visual.ln_pre(append_tokens(x, contexts[0]))
        blocks = visual.transformer.blocks
        x = blocks[0](x, causal=False)
        for context, block in zip(contexts[1:], blocks[1:], strict=False):
            x = block(append_tokens(x[:, :length], context), causal=False)
        states: Tensor = x[:, length:]
        return states

    def _fused(self, states: Tensor) -> Tensor:
        """(B, n, d) → (1, n, d) of a batch, or as they are."""
        if self.coupled.context == "per_sample":
            return states
        return fused(states, self.coupled.fusing)

    def _prefix(self, prompts: Prompts) -> Tensor:
        """Start-of-text and the text prompts as the text tower reads them, (1, 1 + n, d_t)."""
        clip = self.clip
        start = clip.token_embedding.weight[START_OF_TEXT].expand(1, 1, -1)
        x = torch.cat([start, prompts["text.prompts"][:1]], dim=1)
        return x + clip.positional_embedding[: x.shape[1]]

    def _behind(self, layer: int, prefix: Tensor) -> Tensor:
        """The prefix behind a block of the text tower; as it is where no one asks any more."""
        if layer >= self.coupled.depth:
            return prefix
        block: Block = self.clip.transformer.blocks[layer]
        behind: Tensor = block(prefix, causal=True)
        return behind


@dataclass(frozen=True, kw_only=True)
class Coupling:
    """CMPA between the two towers, in every block."""

    tensors: Prompts
    visual_heads: int
    text_heads: int

    @classmethod
    def of(cls, prompted: PromptedClip, prompts: Prompts) -> "Coupling":
        """The coupling of a model whose tensors are among `prompts`."""
        config = prompted.clip.config
        return cls(tensors=prompts, visual_heads=config.vision.heads, text_heads=config.text.heads)

    @property
    def updates_text(self) -> bool:
        """Whether the text prompts learn from the images as well."""
        return f"{TEXT_HALF}.visual_to_text.weight" in self.tensors

    def __call__(self, layer: int, own: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Visual prompts (B, n, d_v) and the text prefix (1, 1 + n, d_t) as block `layer` reads
        them, 1 being the first that is coupled.
        """
        texts = prefix[:, 1:]
        weights = self._half(VISUAL_HALF, layer)
        coupled = attend_across(
            own, texts, weights, heads=self.visual_heads, projection="text_to_visual"
        )
        if self.updates_text:
            weights = self._half(TEXT_HALF, layer)
            texts = attend_across(
                texts, own, weights, heads=self.text_heads, projection="visual_to_text"
            )
            prefix = torch.cat([prefix[:, :1], texts], dim=1)
        return coupled, prefix

    def _half(self, half: str, layer: int) -> dict[str, Tensor]:
        """The tensors of one half in one block, all of which may share them."""
        weights = {}
        for name, tensor in self.tensors.items():
            if name.startswith(f"{half}.") and name != "cmpa.visual_prompts":
                weights[name.removeprefix(f"{half}.")] = tensor[min(layer, len(tensor)) - 1]
        return weights


def attend_across(
    own: Tensor, others: Tensor, weights: Mapping[str, Tensor], *, heads: int, projection: str
) -> Tensor:
    """One half of CMPA: `own` prompts (B, n, d) asked by the `others` (1 or B, n, d') → (B, n, d).

    V' = V + MHA(query = LN₁(T W + b), keys = values = LN₁(V)); V* = V' + MLP(LN₂(V')).
    """
    asked = F.linear(others, weights[f"{projection}.weight"], weights[f"{projection}.bias"])
    queries, keys = (_norm(x, weights, "norm_1") for x in (asked, own))
    own = own + _attention(queries, keys, weights, heads=heads)
    hidden = _norm(own, weights, "norm_2")
    hidden = F.linear(hidden, weights["mlp.c_fc_weight"], weights["mlp.c_fc_bias"])
    hidden = hidden * torch.sigmoid(1.702 * hidden)  # QuickGELU, whatever the towers have
    return own + F.linear(hidden, weights["mlp.c_proj_weight"], weights["mlp.c_proj_bias"])


def fused(states: Tensor, fusing: Fusing) -> Tensor:
    """One set of prompt states of a batch's, (B, n, d) → (1, n, d)."""
    if fusing == "mean":
        return states.mean(dim=0, keepdim=True)
    return states[:1] if fusing == "first" else states.amax(dim=0, keepdim=True)


def fused_over(batches: Iterable[Tensor], fusing: Fusing) -> Tensor:
    """`fused` of all batches together, in bounded memory."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for states in batches:
        dtype = states.dtype
        if fusing == "first":
            return states[:1]
        if fusing == "mean":
            total = total.to(states.device) + states.double().sum(dim=0, keepdim=True)
        else:
            highest = states.double().amax(dim=0, keepdim=True)
            total = torch.maximum(total, highest) if count else highest
        count += len(states)
    return (total / count if fusing == "mean" else total).to(dtype)


def _attention(
    queries: Tensor, keys: Tensor, weights: Mapping[str, Tensor], *, heads: int
) -> Tensor:
    """Multi-head attention of queries (1 or B, n, d) to keys (B, n, d), which are the values."""
    matrices, biases = (
        weights[f"attention.in_proj_{kind}"].chunk(3) for kind in ("weight", "bias")
    )
    query, key, value = (
        F.linear(x, matrix, bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        for x, matrix, bias in zip((queries, keys, keys), matrices, biases, strict=True)
    )  # (1 or B, h, n, d/h)
    attended = F.scaled_dot_product_attention(query.expand_as(key), key, value)
    merged = attended.transpose(1, 2).flatten(2)  # (B, n, d)
    return F.linear(
        merged, weights["attention.out_proj_weight"], weights["attention.out_proj_bias"]
    )


def _norm(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])
