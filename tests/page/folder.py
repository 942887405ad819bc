"""Folders as `coevo run` leaves them, of a run that no engine has made: any number of branches and steps."""

import hashlib
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adapters.manifest import ADAPTER_FILES, Manifest, write_manifest
from adapters.names import BASE
from service.rollouts import CompletionNotes, GroupNotes, PartHead, RecordHead, pack_group, write_record

BRANCHES = ("text", "image", "video")
BEGAN = datetime(2026, 1, 5, 9, tzinfo=UTC)
DIGEST = "sha256:" + "0" * 64
HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)>"
"""What a model may say, and a page may not read as HTML."""


class RunWriter:
    """Writes a run's folder a piece at a time, as its service would."""

    def __init__(self, out: Path, run: str = "demo-1", branches: Sequence[str] = BRANCHES, last: int = 10) -> None:
        self.run, self.branches, self.last = run, branches, last
        self.folder = out / "runs" / run
        self.folder.mkdir(parents=True)
        self.out = out
        self._number = 0
        self._chance = np.random.default_rng(0)
        self.tell("run", 0, state="running", name="demo", branches=dict.fromkeys(branches, last))

    def tell(self, kind: str, second: float, **fields: Any) -> None:
        self.tell_all([(kind, second, fields)])

    def tell_all(self, events: Sequence[tuple[str, float, dict[str, Any]]]) -> None:
        lines: list[str] = []
        for kind, second, fields in events:
            self._number += 1
            at = (BEGAN + timedelta(seconds=second)).isoformat()
            lines.append(json.dumps({"id": f"{self._number}-0", "at": at, "run": self.run, "kind": kind, **fields}))
        with (self.folder / "events.jsonl").open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def step(self, branch: str, number: int, *, warnings: Sequence[str] = ()) -> tuple[str, float, dict[str, Any]]:
        """A step's event: it took eight seconds of ten."""
        teacher = self.branches[(self.branches.index(branch) + 1) % len(self.branches)]
        phase = "opd" if number % 5 in (4, 0) else "rlvr"
        metrics = {
            "native/reward": round(0.3 + 0.6 * number / self.last + self._chance.normal(0, 0.05), 4),
            "native/length": 20.0 + number / 10,
            "native/decided": 0.25,
            "native/cut_off": 0.0,
            "native/mismatch": 1e-7,
        }
        if phase == "opd":
            metrics |= {f"{teacher}/gap": 0.3 / number, f"{teacher}/delta_abs": 0.05, f"{teacher}/reward": 0.5}
        seconds = {"gather": 5.0, "learn": 2.0, "publish": 1.0}
        fields = {"worker": "w-all", "branch": branch, "step": number, "phase": phase, "teachers": [], "skipped": None}
        return "step", 10.0 * number, fields | {"metrics": metrics, "seconds": seconds, "warnings": list(warnings)}

    def steps(self, first: int, last: int) -> None:
        self.tell_all([self.step(branch, n) for n in range(first, last + 1) for branch in self.branches])

    def overlap(self, step: int, value: float) -> None:
        names = [*(f"{branch}@{step}" for branch in self.branches), BASE]
        cells = [[[1.0 if a == b else value] * len(self.branches) for b in names] for a in names]
        shared = [[[1.0 if a == b else 1 - (1 - value) / 3] * len(self.branches) for b in names] for a in names]
        kl = [[[0.0 if a == b else 1 - value] * len(self.branches) for b in names] for a in names]
        alarms = [] if value >= 0.9 else [f"text@{step} overlaps image@{step} by {value}"]
        fields = {"branches": names, "capabilities": list(self.branches), "alarms": alarms}
        measures = {"shared": shared, "overlap": cells, "kl": kl}
        self.tell("overlap", 10.0 * step, system="", phase="opd", step=step, top_k=10, prompts=8, **fields, **measures)

    def rollouts(self, branch: str, step: int, *, groups: int = 8, size: int = 8, tokens: int = 24) -> None:
        """A step's record: a native part with a picture in every prompt, and a teacher's part with its deltas."""
        teacher = self.branches[(self.branches.index(branch) + 1) % len(self.branches)]
        parts = [PartHead(name="native", capability=None, num_groups=groups)]
        parts += [PartHead(name=teacher, capability=teacher, num_groups=groups)]
        head = RecordHead(run=self.run, branch=branch, step=step, metrics={"native/reward": 0.5}, parts=parts)
        picture = self.media(_picture())
        path = self.folder / "rollouts" / branch / f"{step}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)

        def arrays(part: str, number: int) -> dict[str, Any]:
            chance = np.random.default_rng([step, number])
            rows, notes = [], []
            for index in range(size):
                row = {
                    "ids": chance.integers(10, 90, tokens, np.int32),
                    "logprobs": -chance.exponential(0.5, tokens).astype(np.float32),
                    "advantages": np.full(tokens, 1.0 if index % 2 else -1.0, np.float32),
                }
                if part != "native":
                    row["delta"] = chance.normal(0, 1, tokens).astype(np.float32)
                rows.append(row)
                # The last group has one reward for all: nothing to learn from.
                reward = 1.0 if number == groups - 1 else float(index % 2)
                words = f"{HOSTILE} answer {index}" if number == 0 else f"answer {index} to question {number}"
                row_notes = {"text": words, "reward": reward, "why": None, "is_cut_off": index == 3}
                notes.append(CompletionNotes(**row_notes, tokens=tokens, arrays=list(row)))
            question = HOSTILE if number == 0 else f"question {number}?"
            group = GroupNotes(
                prompt_id=f"{part}-{number}", question=question, answer="42", media=[picture], completions=notes
            )
            return pack_group(group, np.arange(10, 20), rows)

        write_record(path, head, arrays)

    def media(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        folder = self.out / "store" / ".media"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        return f"sha256:{name}"

    def revision(self, branch: str, number: int, *, origin: str | None = None) -> None:
        folder = self.out / "store" / branch / str(number)
        folder.mkdir(parents=True)
        meta = {"phase_end": number % 5 == 0, "metrics": {"native/reward": 0.5}}
        parent = None if number == 0 else number - 1
        manifest = Manifest(
            branch=branch, revision=number, parent=parent, origin=origin, base=DIGEST, digest=DIGEST, files={},
            meta=meta, created=BEGAN + timedelta(seconds=10 * number),
        )  # fmt: skip
        write_manifest(folder, manifest)


def _picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.tile(np.array([[200, 40, 40], [40, 40, 200]], np.uint8), (8, 8, 1))).save(file, "PNG")
    return file.getvalue()


def write_demo(out: Path) -> RunWriter:
    """Two runs, the one finished and the one going on, with all that the screens show."""
    finished = RunWriter(out, "demo-0")
    finished.steps(1, 10)
    finished.tell("run", 100, state="finished", name="demo", branches=dict.fromkeys(BRANCHES, 10))
    writer = RunWriter(out)
    writer.tell("lease", 1, worker="w-all", branch="text", what="claimed", job="demo-1:text:0")
    writer.steps(1, 5)
    writer.overlap(5, 0.95)
    writer.tell_all(
        [writer.step("text", 6, warnings=["native/mismatch: 0.2 nat lie between trainer and engine: mend"])]
    )
    writer.tell("failed", 62, worker="w-all", branch="image", step=6, error="no memory", dead=True)
    writer.overlap(6, 0.85)
    for branch in BRANCHES:
        for step in range(1, 6):
            writer.rollouts(branch, step)
        for number in range(7):
            writer.revision(branch, number, origin="text@5" if branch == "video" and number == 0 else None)
    (out / "recipe.json").write_text(json.dumps({"name": "demo", "base": {"name": "miniature"}}))
    (out / "logs").mkdir()
    (out / "logs/service.log").write_text("coevo serve: loading\nWARNING 01-05 slow disk\n")
    (out / "logs/worker-all.log").write_text("worker: at work\nValueError: a step failed\n")
    _write_results(out)
    return writer


def _write_results(out: Path) -> None:
    interval = {"mean": 0.6, "low": 0.5, "high": 0.7}
    rows = [
        {"model": model, "exam": exam, "way": decoding, "accuracy": interval, "gain": interval, "blind": 0.2}
        for model in (BASE, "text@5", "image@5", "video@5", "merged")
        for exam in BRANCHES
        for decoding in ("greedy", "avg@2")
    ]
    (out / "results.json").write_text(json.dumps({"recipe": "demo", "results": rows}))
    branches = [{"name": name, "source": f"{name}@5", "share": 1 / 3, "rank": 16} for name in BRANCHES]
    cosines = {"text image": 0.3, "text video": 0.2, "image video": None}
    merge = {"method": "mean", "scale": 1.0, "branches": branches, "cosines": cosines, "layer_norms": [0.5, 0.7]}
    (out / "merged").mkdir()
    (out / "merged/merge.json").write_text(
        json.dumps(merge | {"changed": 0.9, "lost": 0.04, "largest_difference": 1e-4})
    )
    (out / "merged-adapter").mkdir()
    for name in ADAPTER_FILES:
        (out / "merged-adapter" / name).write_bytes(b"{}")
    (out / "scales.json").write_text(json.dumps([{"scale": 0.5, "accuracy": 0.5}, {"scale": 2.0, "accuracy": 0.7}]))
