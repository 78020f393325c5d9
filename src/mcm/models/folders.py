"""Folders of weights as diffusers and transformers write them: finding, reading, loading. Safetensors only.

Networks are loaded one by one and not through pipelines: those would also load what nobody asks for here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError

from mcm.errors import UserError

LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers calls a LoRA's file
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def find_folder(name: str | Path, what: str, parts: Sequence[str] = ("",)) -> Path:
    """The folder of the network or pipeline `name`: a local folder, a pocket name, or a hub id (owner/name).

    what: for messages ("teacher", "backbone"). parts: the subfolders to fetch from the hub, "" for the top
    level. A hub id is downloaded into Hugging Face's own cache, or taken from there without a network. Only
    safetensors, JSON, text and SentencePiece's words are fetched; half-precision and non-averaged variants
    stay there, for they repeat the weights. Raises UserError where none of these works.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(
            f"{what} {name}: is a file; expected a folder in the layout of diffusers / transformers"
        )
    from mcm.pocket.zoo import find  # only here: a model of the user's own never needs the zoo

    found = find(str(name))
    if found is not None:
        return Path(found)
    if not _HUB_ID.fullmatch(str(name)):
        raise UserError(
            f"{what} {name}: no such folder, and no pocket model of that name; expected a folder in the "
            "layout of diffusers / transformers, a name that `mcm list` shows, or a Hugging Face id "
            "(owner/name)"
        )
    return _from_hub(str(name), what, parts)


def _from_hub(name: str, what: str, parts: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    # spiece.model: the words of T5's tokenizers (SentencePiece)
    kinds = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "spiece.model")
    wanted = [f"{part}/{kind}" if part else kind for part in parts for kind in kinds]
    if "" not in parts:  # fnmatch's star also matches slashes, so top-level files are named one by one
        wanted += ["model_index.json", "mcm.json", LORA_FILE]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*.fp16.*", "*non_ema*"]))
    except (OSError, ValueError) as error:
        # The hub's own errors, connection errors among them, are OSErrors; a malformed id is a ValueError.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{what} {name}: neither a local folder nor to be had from the Hugging Face hub ({reason}); on a "
            f"machine with network run `hf download {name}`, copy the folder here and give its path"
        ) from error


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in the file `path`; UserError beginning with `what` where it is missing or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{what}: {path} is missing; expected a whole folder as save_pretrained writes it"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{what}: cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{what}: {path} holds a {type(content).__name__}; expected a JSON object")
    return content


def class_of(root: Path, part: str) -> str | None:
    """The `_class_name` that root/part/config.json (part "": root/model_index.json) states; None without
    one."""
    path = root / part / "config.json" if part else root / "model_index.json"
    return read_json(path, f"model {root}").get("_class_name") if path.is_file() else None


def component(root: Path, part: str) -> Path:
    """The folder root/part; UserError naming it where it is missing."""
    folder = root / part
    if not folder.is_dir():
        raise UserError(
            f"model {root}: its folder {part}/ is missing; expected a whole pipeline folder as diffusers' "
            f"save_pretrained writes it (put {part}/ there, or download the model again)"
        )
    return folder


def load_network(kind: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The network of class `kind` (diffusers' or transformers') in `folder`: frozen, in eval mode, on the
    CPU, in `dtype` whatever precision stores it.

    UserError where weights are absent, pickled, broken or incomplete: a weight that is not in the file would
    stay random. Inside `with torch.device("meta")` no weights are read: the network is its configuration's shapes.
    """
    if torch.get_default_device().type == "meta":
        return _shapes(kind, folder, dtype)
    names = [path.name for path in folder.glob("*.safetensors")]
    if not names:
        raise UserError(
            f"{folder}: no .safetensors weights; expected them as save_pretrained writes them (pickled .bin "
            "files are never read: convert them with safetensors first)"
        )
    variant = "fp16" if all(".fp16" in name for name in names) else None
    try:
        network, info = kind.from_pretrained(
            folder,
            dtype=dtype,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder}: cannot be loaded as {kind.__name__}: {reason}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"{folder}: the file lacks {len(missing)} weight(s) of {kind.__name__}, {missing[0]} among them; "
            "download the model again"
        )
    return network.eval().requires_grad_(False)


def _shapes(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The network that the config.json in `folder` describes, without weights (torch's meta device)."""
    read_json(folder / "config.json", f"model {folder}")
    try:
        if hasattr(kind, "from_config"):  # diffusers
            network = kind.from_config(kind.load_config(folder, local_files_only=True))
        else:
            network = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder}: config.json does not describe a {kind.__name__}: {reason}") from error
    kept = set(getattr(kind, "_keep_in_fp32_modules", None) or ()) if hasattr(kind, "from_config") else set()
    for name, weight in (*network.named_parameters(), *network.named_buffers()):
        if weight.is_floating_point() and not kept & set(name.split(".")):
            weight.data = weight.data.to(dtype)
    return network.eval().requires_grad_(False)


def place(folder: Path, write: Callable[[Path], None], what: str) -> None:
    """Runs `write` on a temporary folder inside `folder`, then moves its files here, each whole.

    UserError, and nothing half-written under a final name, where the disk is full or the folder cannot be
    written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".writing-", dir=folder) as temporary:
            write(Path(temporary))
            for path in sorted(Path(temporary).iterdir()):
                path.chmod(0o644)  # safetensors writes files that only their owner may read
                os.replace(path, folder / path.name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{what} {folder}: cannot be written: {error}") from error
