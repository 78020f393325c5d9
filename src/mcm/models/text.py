"""The text encoders, CLIP's and T5's: captions to what the denoiser and the discriminator read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from mcm.errors import UserError
from mcm.models.folders import component, load_network


class TextEmbedding(NamedTuple):
    """hidden: every token's state, (B, L, D); pooled: one state for the caption, (B, E): CLIP's at its end-of-text
    token, T5's as the mean over its tokens."""

    hidden: Tensor
    pooled: Tensor


class TextEncoder(nn.Module):
    """A frozen CLIP text tower with its tokenizer; the empty prompt is "".

    As in Stable Diffusion's pipelines, captions are padded (and cut) to the tokenizer's length, no attention
    mask is used, and the hidden states are the last ones after the final norm. The embeddings of recent
    captions are kept, `cache_bytes` of them; each caption is encoded by itself, so that its embedding does
    not depend, not even in the last bit, on what else was asked for.
    """

    def __init__(
        self, network: Any, tokenizer: Any, cache_bytes: int = 64 * 2**20, length: int | None = None
    ) -> None:
        """length: tokens of a caption; by default the tokenizer's, or the network's where that is less."""
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        if length is None:  # without model_max_length in its files a tokenizer says 1e30
            length = int(min(tokenizer.model_max_length, network.config.max_position_embeddings))
        self.length = length
        self.width = int(network.config.hidden_size)
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[str, TextEmbedding] = OrderedDict()

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> Self:
        """From the text_encoder/ and tokenizer/ of a pipeline folder."""
        from transformers import CLIPTextModel, CLIPTokenizer

        network = load_network(CLIPTextModel, component(folder, "text_encoder"), dtype)
        return cls(network, _load_tokenizer(CLIPTokenizer, "CLIP", folder, network))

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
        found = self._encode(prompt)
        self._cache[prompt] = found
        room = max(1, self.cache_bytes // (found.hidden.numel() * found.hidden.element_size()))
        while len(self._cache) > room:
            self._cache.popitem(last=False)
        return found

    def _encode(self, prompt: str) -> TextEmbedding:
        ids = self._tokens(prompt).input_ids
        hidden = self.network(ids).last_hidden_state[0]
        # transformers' pooler_output goes by config.eos_token_id and silently pools the first token where
        # that is not the tokenizer's; the first end-of-text token of the tokenizer is what CLIP means in
        # either case
        end = int((ids[0] == self.tokenizer.eos_token_id).int().argmax())
        return TextEmbedding(hidden, hidden[end].clone())

    def _tokens(self, prompt: str) -> Any:
        """input_ids and attention_mask (1, L), on the network's device."""
        return self.tokenizer(
            [prompt], padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).to(self.network.device)

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's, but the frozen network stays in eval mode."""
        super().train(mode)
        self.network.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._cache.clear()  # another device or precision
        return super()._apply(fn, recurse)


class T5Encoder(TextEncoder):
    """The encoder of T5 or UMT5 with its tokenizer.

    masked: as in Wan's pipeline, the network is told which tokens are padding, and what it says of those is 0;
    else, as in CogVideoX's, padding counts as text. pooled is the mean over the caption's own tokens in either case.
    clean: what is done to a caption before it is read.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        length: int,
        masked: bool,
        clean: Callable[[str], str] = str,
        cache_bytes: int = 64 * 2**20,
    ) -> None:
        super().__init__(network, tokenizer, cache_bytes, length)
        self.masked = masked
        self.clean = clean

    @classmethod
    def read(
        cls,
        kind: Any,
        folder: Path,
        length: int,
        masked: bool,
        clean: Callable[[str], str] = str,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """From the text_encoder/ (of class `kind`, transformers') and tokenizer/ of a pipeline folder."""
        from transformers import AutoTokenizer

        words = component(folder, "tokenizer")
        lacking = [name for name in ("sentencepiece", "google.protobuf") if not _installed(name)]
        if not (words / "tokenizer.json").is_file() and lacking:
            raise UserError(
                f"{words}: its words lie in spiece.model alone, which takes the libraries sentencepiece and protobuf "
                "to read: `pip install sentencepiece protobuf`, or put the tokenizer.json of a T5 tokenizer there"
            )
        network = load_network(kind, component(folder, "text_encoder"), dtype)
        return cls(network, _load_tokenizer(AutoTokenizer, "T5", folder, network), length, masked, clean)

    def _encode(self, prompt: str) -> TextEmbedding:
        tokens = self._tokens(self.clean(prompt))
        mask = tokens.attention_mask
        hidden = self.network(tokens.input_ids, mask if self.masked else None).last_hidden_state[0]
        own = mask[0].bool()
        if self.masked:
            hidden = hidden * own[:, None]
        return TextEmbedding(hidden, hidden[own].mean(0))


def _load_tokenizer(kind: Any, what: str, folder: Path, network: Any) -> Any:
    """The tokenizer/ of a pipeline folder; UserError where it cannot be read or is not that of `network`."""
    words = component(folder, "tokenizer")
    try:
        tokenizer = kind.from_pretrained(words, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{words}: cannot be read as a {what} tokenizer: {reason}") from error
    if len(tokenizer) > network.config.vocab_size:
        raise UserError(
            f"{words}: {len(tokenizer)} words, but text_encoder/ of {folder} knows "
            f"{network.config.vocab_size}; expected the tokenizer that belongs to it"
        )
    return tokenizer


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of its package
        return False
