"""The text encoder: captions to what the denoiser and the discriminator read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from mcm.errors import UserError
from mcm.models.folders import component, load_network


class TextEmbedding(NamedTuple):
    """hidden: every token's state, (B, L, D); pooled: the caption's, at its end-of-text token, (B, E)."""

    hidden: Tensor
    pooled: Tensor


class TextEncoder(nn.Module):
    """A frozen CLIP text tower with its tokenizer; the empty prompt is "".

    As in Stable Diffusion's pipelines, captions are padded (and cut) to the tokenizer's length, no attention
    mask is used, and the hidden states are the last ones after the final norm. The embeddings of recent
    captions are kept, `cache_bytes` of them; each caption is encoded by itself, so that its embedding does
    not depend, not even in the last bit, on what else was asked for.
    """

    def __init__(self, network: Any, tokenizer: Any, cache_bytes: int = 64 * 2**20) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        # without model_max_length in its files a tokenizer says 1e30
        self.length = int(min(tokenizer.model_max_length, network.config.max_position_embeddings))
        self.width = int(network.config.hidden_size)
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[str, TextEmbedding] = OrderedDict()

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> Self:
        """From the text_encoder/ and tokenizer/ of a pipeline folder."""
        from transformers import CLIPTextModel, CLIPTokenizer

        words = component(folder, "tokenizer")
        network = load_network(CLIPTextModel, component(folder, "text_encoder"), dtype)
        try:
            tokenizer = CLIPTokenizer.from_pretrained(words, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{words}: cannot be read as a CLIP tokenizer: {reason}") from error
        if len(tokenizer) > network.config.vocab_size:
            raise UserError(
                f"{words}: {len(tokenizer)} words, but text_encoder/ of {folder} knows "
                f"{network.config.vocab_size}; expected the tokenizer that belongs to it"
            )
        return cls(network, tokenizer)

    def forward(self, prompts: Sequence[str]) -> TextEmbedding:
        """B captions -> hidden (B, L, D), pooled (B, E), on the network's device. No gradients."""
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts {prompts!r}: expected a list of at least one caption")
        found = {prompt: self._embed(prompt) for prompt in dict.fromkeys(prompts)}
        return TextEmbedding(
            torch.stack([found[prompt].hidden for prompt in prompts]),
            torch.stack([found[prompt].pooled for prompt in prompts]),
        )

    @torch.no_grad()
    def _embed(self, prompt: str) -> TextEmbedding:
        """One caption, without the batch: (L, D) and (E,)."""
        if prompt in self._cache:
            self._cache.move_to_end(prompt)
            return self._cache[prompt]
        ids = self.tokenizer(
            [prompt], padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).input_ids.to(self.network.device)
        hidden = self.network(ids).last_hidden_state[0]
        # transformers' pooler_output goes by config.eos_token_id and silently pools the first token where
        # that is not the tokenizer's; the first end-of-text token of the tokenizer is what CLIP means in
        # either case
        end = int((ids[0] == self.tokenizer.eos_token_id).int().argmax())
        found = TextEmbedding(hidden, hidden[end].clone())
        self._cache[prompt] = found
        room = max(1, self.cache_bytes // (hidden.numel() * hidden.element_size()))
        while len(self._cache) > room:
            self._cache.popitem(last=False)
        return found

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's, but the frozen network stays in eval mode."""
        super().train(mode)
        self.network.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._cache.clear()  # another device or precision
        return super()._apply(fn, recurse)
