"""A valid adapter of the miniature in two small files, without torch or PEFT (which test_validate compares with).

And a store of such adapters.
"""

import hashlib
import json
import shutil
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
from safetensors.numpy import save_file

from adapters.base import locate
from adapters.manifest import ADAPTER_FILES, CONFIG, WEIGHTS, FileEntry, Manifest, adapter_digest, base_digest
from adapters.store import Store
from adapters.validate import TARGETS, base_shape

BASE = "sha256:" + "0" * 64
SHAPE = base_shape(locate("miniature"))


def write_adapter(folder, fill=0.0, *, rank=1):
    """`fill` makes contents differ."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none", "target_modules": sorted(TARGETS)}
    (folder / CONFIG).write_text(json.dumps(config))
    save_file({key: np.full(shape, fill, "f4") for key, shape in SHAPE.shapes(rank).items()}, folder / WEIGHTS)
    return folder


@contextmanager
def store_in_use(root, folders):
    """A store whose lock is held, with text@1 and 2, image@1, and an upload on its way."""
    base = base_digest(locate("miniature"))
    with Store(root, base) as store:
        store.start("text")
        store.start("image")
        for name, revision in (("text", 1), ("text", 2), ("image", 1)):
            staged = store.stage()
            for file in ADAPTER_FILES:
                shutil.copyfile(folders[name] / file, staged / file)
            content = {file: (staged / file).read_bytes() for file in ADAPTER_FILES}
            files = {
                file: FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
                for file, data in content.items()
            }
            digest, now = adapter_digest(files), datetime.now(UTC)
            parts = {"branch": name, "revision": revision, "parent": revision - 1, "base": base, "created": now}
            store.commit(staged, Manifest(**parts, digest=digest, files=files))
        store.stage()
        yield store
