"""A teacher of two names, "BASE+ADAPTER": any Stable Diffusion 1.5 and a motion adapter, as one AnimateDiff pipeline.

The two stay where they are. A pipeline folder of links to them is made once in the user's cache, with an index and a
scheduler of its own, so that everything that reads pipeline folders (diffusers included) reads this one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from mcm.errors import UserError
from mcm.models.folders import class_of, component, find_folder, read_json
from mcm.output import cannot_write, write_json

SIGN = "+"
SCHEDULER, SCHEDULER_FILE = "scheduler", "scheduler_config.json"
_LINKED = ("unet", "vae", "text_encoder", "tokenizer")
_CLASSES = {
    "unet": ["diffusers", "UNet2DConditionModel"], "motion_adapter": ["diffusers", "MotionAdapter"],
    "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"],
    "feature_extractor": [None, None], "image_encoder": [None, None],
}  # fmt: skip
_KEPT = ("num_train_timesteps", "beta_start", "beta_end", "prediction_type", "trained_betas")  # of the base's scheduler
# Motion adapters were trained with linear betas (arXiv 2307.04725), Stable Diffusion with scaled ones.
_ADAPTERS = {
    "_class_name": "DDIMScheduler", "beta_schedule": "linear", "clip_sample": False, "set_alpha_to_one": False,
    "steps_offset": 1, "timestep_spacing": "linspace",
}  # fmt: skip

_Find = Callable[[str, str, Sequence[str]], Path]


def joined(name: str | Path, find: _Find = find_folder) -> Path | None:
    """The pipeline folder of "BASE+ADAPTER", None where `name` is no such name.

    BASE: a Stable Diffusion pipeline, ADAPTER: a motion adapter, or a pipeline with one; each a folder or a hub id.
    find: as `mcm.models.folders.find_folder`. UserError where one is missing or something else, or the cache cannot be
    written.
    """
    parts = str(name).split(SIGN)
    if len(parts) == 1 or Path(name).expanduser().exists():
        return None
    if len(parts) != 2 or not all(part.strip() for part in parts):
        raise UserError(
            f"teacher {name}: expected BASE{SIGN}ADAPTER, a Stable Diffusion 1.5 and a motion adapter, such as "
            f"stable-diffusion-v1-5/stable-diffusion-v1-5{SIGN}guoyww/animatediff-motion-adapter-v1-5-2"
        )
    base = find(parts[0].strip(), "base model", (*_LINKED, SCHEDULER))
    found = class_of(base, "unet")
    if found != "UNet2DConditionModel":
        raise UserError(
            f"base model {parts[0]}: its unet/ is a {found}; expected a Stable Diffusion pipeline, whose unet/ is a "
            "UNet2DConditionModel"
        )
    adapter = find(parts[1].strip(), "motion adapter", ("",))
    if (adapter / "motion_adapter").is_dir():
        adapter = adapter / "motion_adapter"
    found = read_json(adapter / "config.json", f"motion adapter {parts[1]}").get("_class_name")
    if found != "MotionAdapter":
        raise UserError(f"motion adapter {parts[1]}: is a {found}; expected diffusers' MotionAdapter")
    links = {part: component(base, part).resolve() for part in _LINKED} | {"motion_adapter": adapter.resolve()}
    stated = read_json(component(base, SCHEDULER) / SCHEDULER_FILE, f"base model {base}")
    scheduler = {**{key: stated[key] for key in _KEPT if stated.get(key) is not None}, **_ADAPTERS}
    if (base / "mcm.json").is_file():
        links["mcm.json"] = (base / "mcm.json").resolve()
    return _folder(links, scheduler)


def _folder(links: dict[str, Path], scheduler: dict[str, Any]) -> Path:
    """The folder of these links and this scheduler, made where it is not there yet, whole or not at all."""
    mark = json.dumps([sorted((part, str(path)) for part, path in links.items()), scheduler], sort_keys=True)
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mcm" / "teachers"
    folder = home / hashlib.sha256(mark.encode()).hexdigest()[:24]
    if folder.is_dir():
        return folder
    import diffusers

    index = {"_class_name": "AnimateDiffPipeline", "_diffusers_version": diffusers.__version__, **_CLASSES}
    try:
        home.mkdir(parents=True, exist_ok=True)
        made = Path(mkdtemp(prefix=".joining-", dir=home))
        try:
            for part, path in links.items():
                (made / part).symlink_to(path, target_is_directory=path.is_dir())
            write_json(made / SCHEDULER / SCHEDULER_FILE, scheduler)
            write_json(made / "model_index.json", index)
            made.chmod(0o755)
            os.replace(made, folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        if folder.is_dir():  # another process was faster
            return folder
        raise cannot_write(folder, error) from error
    return folder
