"""The zoo's CLIP: frames of every domain against their captions. Its text tower is also the teachers' text encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from mcm.pocket.training.corpus import Domains
from mcm.pocket.training.loop import Losses, train
from mcm.pocket.training.words import END, MAX_LENGTH, START, save_tokenizer

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


def fit(work: Path, steps: int = 1500, batch: int = 96) -> CLIPModel:
    """Contrastive training; the picture is one frame, its caption the clip's. Saved with its tokenizer."""
    folder = work / "clip"
    tokenizer = save_tokenizer(folder)
    numbers = tokenizer.get_vocab()
    model = build(len(tokenizer), numbers[START], numbers[END])
    domains = Domains(work)

    def losses(step: int, rng: torch.Generator) -> Losses:
        drawn = domains.draw(rng, batch)
        pictures, _ = drawn.frames(rng)
        ids = tokenizer([s.caption for s in drawn.specs], padding="max_length", return_tensors="pt").input_ids
        # pixels are normalised with mean 0.5 and deviation 0.5, which is what [-1, 1] already is
        image = F.normalize(model.visual_projection(model.vision_model(pictures).pooler_output), dim=-1)
        text = F.normalize(model.text_projection(model.text_model(ids).pooler_output), dim=-1)
        logits = model.logit_scale.clamp(max=4.6).exp() * image @ text.T
        same = (ids[:, None] == ids[None]).all(-1).float()  # equal captions are equally right
        target = same / same.sum(-1, keepdim=True)
        return {"image": 0.5 * F.cross_entropy(logits, target), "text": 0.5 * F.cross_entropy(logits.T, target)}

    model.load_state_dict(
        train("clip", model, losses, steps=steps, learning_rate=1.5e-3, work=work, weight_decay=0.05, warmup=200)
    )
    return model.eval()
