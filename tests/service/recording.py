"""The engine as the registry sees it, which only writes down what it is asked for."""

import asyncio
import hashlib

from adapters.manifest import WEIGHTS
from service.publishing.registry import AdapterLoadError


class RecordingLoader:
    def __init__(self):
        self.log = []
        self.loaded = {}
        self.contents = {}
        self.refuses = set()
        self.gate = asyncio.Event()
        self.gate.set()

    async def load(self, name, folder):
        self.log.append(f"load {name}")
        await self.gate.wait()
        if name in self.refuses:
            raise AdapterLoadError(f"{name}: refused")
        content = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        assert name not in self.loaded, f"{name} is loaded already"
        assert self.contents.setdefault(name, content) == content, f"{name} had other content before"
        self.loaded[name] = folder
        return name

    async def unload(self, handle):
        self.log.append(f"unload {handle}")
        del self.loaded[handle]
