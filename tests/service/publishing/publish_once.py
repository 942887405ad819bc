"""A publish in a process of its own, which a test kills: STORE ADAPTER REVISION TOKEN.

Prints what came of it; COEVO_FAULT says where it dies.
"""

import asyncio
import sys
from pathlib import Path

from adapters.names import Ref
from adapters.precision import Dtype
from adapters.store import Store
from service.publishing.decisions import Upload
from service.publishing.publisher import Publisher
from service.publishing.registry import Registry
from tests.adapters.files import BASE, SHAPE
from tests.service.recording import RecordingLoader


async def canary(handle):
    return [-1.0, -2.0]


async def chunks(path, size=1000):
    data = path.read_bytes()
    for start in range(0, len(data), size):
        yield data[start : start + size]


def make_publisher(store, loader, cache, *, dtype: Dtype = "float32", canary=canary, fence=None):
    registry = Registry(store, loader, cache, dtype=dtype, capacity=4)
    return registry, Publisher(store, registry, SHAPE, max_rank=8, canary=canary, fence=fence)


async def publish(publisher, folder, upload):
    async with publisher.stage() as stage:
        for path in sorted(folder.iterdir()):
            await stage.receive(path.name, chunks(path))
        return await publisher.publish(stage, upload)


async def main(root, adapter, revision, token):
    with Store(Path(root), BASE) as store:
        _, publisher = make_publisher(store, RecordingLoader(), Path(root).with_name("cache"))
        upload = Upload(Ref("image", int(revision)), int(revision) - 1, token=int(token))
        print(await publish(publisher, Path(adapter), upload))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
