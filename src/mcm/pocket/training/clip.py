"""The zoo's CLIP: frames of every domain against their captions. Its text tower is also the teachers' text encoder.

A teacher must hear every word, also those that single frames hardly show. By contrast alone the text tower forgot the
actions: exchanging one moved its own token's state by 0.08 to 0.37 of its length, a colour's by 1.3. So every token's
state must also name its word, and the caption's the answers to the world's questions.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from mcm.pocket.training.corpus import Domains
from mcm.pocket.training.labels import answers, question_losses
from mcm.pocket.training.loop import Losses, train
from mcm.pocket.training.words import END, MAX_LENGTH, START, save_tokenizer
from mcm.pocket.world import QUESTIONS

WIDTH = 96


def build(vocabulary: int, start: int, end: int) -> CLIPModel:
    """The network, untrained: two towers of width 96, pictures of 64 x 64 in patches of 8 x 8."""
    text = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=MAX_LENGTH, projection_dim=WIDTH,
        bos_token_id=start, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=4, num_attention_heads=4,
        image_size=64, patch_size=8, projection_dim=WIDTH,
    )  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH))


def fit(work: Path, steps: int = 1000, batch: int = 96) -> CLIPModel:
    """Contrastive training; the picture is one frame, its caption the clip's. Saved with its tokenizer."""
    folder = work / "clip"
    tokenizer = save_tokenizer(folder)
    numbers = tokenizer.get_vocab()
    clip = build(len(tokenizer), numbers[START], numbers[END])
    words, asked = nn.Linear(WIDTH, len(tokenizer)), nn.Linear(WIDTH, sum(QUESTIONS.values()))
    model = nn.ModuleDict({"clip": clip, "words": words, "asked": asked})
    domains = Domains(work)

    def losses(step: int, rng: torch.Generator) -> Losses:
        drawn = domains.draw(rng, batch)
        pictures, _ = drawn.frames(rng)
        ids = tokenizer([s.caption for s in drawn.specs], padding="max_length", return_tensors="pt").input_ids
        # pixels are normalised with mean 0.5 and deviation 0.5, which is what [-1, 1] already is
        image = F.normalize(clip.visual_projection(clip.vision_model(pictures).pooler_output), dim=-1)
        told = clip.text_model(ids)
        text = F.normalize(clip.text_projection(told.pooler_output), dim=-1)
        logits = clip.logit_scale.clamp(max=4.6).exp() * image @ text.T
        same = (ids[:, None] == ids[None]).all(-1).float()  # equal captions are equally right
        target = same / same.sum(-1, keepdim=True)
        parts = question_losses(asked(told.pooler_output), answers(drawn.specs), QUESTIONS)
        return {
            "image": 0.5 * F.cross_entropy(logits, target),
            "text": 0.5 * F.cross_entropy(logits.T, target),
            "words": F.cross_entropy(words(told.last_hidden_state).flatten(0, 1), ids.flatten()),
            "questions": 0.2 * torch.stack(list(parts.values())).sum(),
        }

    model.load_state_dict(
        train("clip", model, losses, steps=steps, learning_rate=1.5e-3, work=work, weight_decay=0.05, warmup=200)
    )
    return clip.eval()
