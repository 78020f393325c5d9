"""Checkpoints without pickle: any tree of tensors, numbers, strings, lists and dicts as safetensors + JSON.

The JSON skeleton travels in the safetensors header, so one file is one checkpoint. It is written under a temporary
name, flushed to the disk and renamed, so a kill leaves the last good file; a failed write is an error, never a
warning.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mcm.errors import UserError

_FORMAT = "mcm-state-1"


def _pack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        # safetensors refuses memory that two names share and views that are not contiguous
        tensors[name] = tree.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"dict": [[_pack(k, tensors), _pack(v, tensors)] for k, v in tree.items()]}
    if isinstance(tree, list | tuple):
        return {"list" if isinstance(tree, list) else "tuple": [_pack(v, tensors) for v in tree]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"value": tree}
    raise TypeError(f"a checkpoint holds tensors, numbers, strings, lists and dicts, not {type(tree).__name__}")


def _unpack(node: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in value}
    if kind in ("list", "tuple"):
        items = [_unpack(v, tensors) for v in value]
        return items if kind == "list" else tuple(items)
    return value


def copied(tree: Any) -> Any:
    """A tree of state in memory of its own, on the CPU; what `load_state` would read after `save_state`."""
    tensors: dict[str, Tensor] = {}
    return _unpack(_pack(tree, tensors), tensors)


def all_finite(tree: Any) -> bool:
    """Whether no tensor in a tree of state holds NaN or infinity."""
    if isinstance(tree, Tensor):
        return bool(tree.isfinite().all())
    if isinstance(tree, dict):
        return all(map(all_finite, tree.values()))
    return all(map(all_finite, tree)) if isinstance(tree, list | tuple) else True


def save_state(path: Path, tree: Any) -> None:
    """Write a tree of state to one file, atomically.

    Raises:
        UserError: when the disk is full or the place cannot be written; nothing is left under the final name.
        TypeError: for an object that is neither tensor, number, string, list, tuple nor dict.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_pack(tree, tensors))
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata={"format": _FORMAT, "skeleton": skeleton})
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True) if partial.parent.is_dir() else None
        raise UserError(
            f"cannot write the checkpoint {path}: {error}; free some space or choose another --out, "
            "then run the same command again"
        ) from error


def load_state(path: Path) -> Any:
    """Read what `save_state` wrote.

    Raises:
        UserError: when the file is missing, damaged or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise UserError(f"{path} is not a checkpoint of this program: its format is {metadata.get('format')!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the checkpoint {path}: {error}; expected a file written by training") from error
    return _unpack(json.loads(metadata["skeleton"]), tensors)
