"""The zoo's tokenizer: a CLIP byte-pair vocabulary learned from the world's captions."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from mcm.pocket import world

MAX_LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"


def save_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learn the vocabulary, write vocab.json and merges.txt, and save the tokenizer's folder.

    Every word of the world's captions becomes one token; other words are spelled with letters and digits.
    """
    captions = [world.spec("judge", i).caption for i in range(4000)]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789.,!?'-")
    spelled = [f"{letter} {letter}{letter}" for letter in alphabet]  # each letter inside a word and at its end
    trainer = trainers.BpeTrainer(
        vocab_size=1000, min_frequency=2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(captions + spelled * 2, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    entries = sorted(set(model["vocab"]) | {a + "</w>" for a in alphabet})
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    vocabulary = {word: number for number, word in enumerate([*entries, START, END])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    words = CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=MAX_LENGTH,
        unk_token=END, bos_token=START, eos_token=END, pad_token=END,
    )  # fmt: skip
    words.save_pretrained(folder)
    return words
