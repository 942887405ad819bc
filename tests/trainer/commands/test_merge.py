"""The merge command as it is typed. What a merge computes: tests/adapters/test_merge.py."""

import base64
import json
import os
import subprocess
import sys
import threading
from argparse import ArgumentParser
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from adapters.base import locate
from adapters.errors import UserError
from adapters.manifest import CONFIG, base_digest
from adapters.merge_record import RECORD
from adapters.store import Store
from tests.adapters.files import store_in_use, write_adapter
from trainer.commands import merge as merge_command


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return {name: write_adapter(root / name, fill) for name, fill in {"text": 0.1, "image": 0.2, "video": 0.3}.items()}


@pytest.fixture
def store(tmp_path, folders):
    with store_in_use(tmp_path / "store", folders) as store:
        yield store


def command(*words):
    parser = ArgumentParser()
    merge_command.add_arguments(parser)
    return merge_command.run(parser.parse_args([str(word) for word in words]))


def test_the_command_merges_revisions_and_folders(store, folders, tmp_path, capsys) -> None:
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"base": {"text": 0.25}, "merged": {"text": 0.81, "image": 0.5}}))
    words = ["text@1", "new=text@2", f"other={folders['video']}", "--base=miniature", f"--store={store.root}"]
    out, adapter = tmp_path / "out", tmp_path / "adapter"
    assert command(*words, "--weights=new=2,text=1,other=1", f"--out={out}", f"--adapter={adapter}",
                   f"--scores={scores}") == 0  # fmt: skip
    card = (out / "README.md").read_text()
    assert "| new | text@2 |" in card
    assert "| merged | 0.500 | 0.810 |" in card
    assert "| base | - | 0.250 |" in card
    assert (adapter / CONFIG).is_file()
    output = capsys.readouterr().out
    assert "cosine of text new: 1.000" in output
    assert str(out) in output


def test_of_a_run_every_branch_is_merged_as_it_is_newest(store, tmp_path) -> None:
    for number, name in enumerate((store.root, store.root.parent)):
        out = tmp_path / f"out{number}"
        assert command(name, "--base=miniature", f"--out={out}", "--weights=text=3,image=1") == 0
        record = json.loads((out / RECORD).read_text())
        assert [(branch["source"], branch["share"]) for branch in record["branches"]] == [
            ("image@1", 0.25),
            ("text@2", 0.75),
        ]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["text@1"], "nothing to make"),
        (["text@1", "--out=x"], "with --store"),
        (["text@1", "text@2", "--out=x", "--store={store}"], "two adapters are called text"),
        (["text@1", "--out=x", "--store={store}", "--weights=text=many"], "has no number"),
        (["text@1", "--out=x", "--store={store}", "--weights=text=1,text=2"], "has two"),
        (["text@1", "--out=x", "--store={store}/text"], "no store"),
        (["text@1", "--adapter=x", "--out=..", "--store={store}"], "exists"),
        (["text@1", "--adapter=x", "--out=x", "--store={store}"], "name two folders"),
        (["text@1", "--adapter=x", "--out=y", "--store={store}", "--method=ties"], "makes no adapter"),
        (["text@1", "--out=/nowhere/x", "--store={store}"], "is no folder"),
        (["text@1", "--out=x", "--store={store}", "--scores=nowhere"], "no scores"),
    ],
)
def test_wrong_words_are_one_line_and_leave_nothing(words, reason, store, tmp_path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match=reason) as error:
        command(*(word.format(store=store.root) for word in words), "--base=miniature")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "here").iterdir()) == []


def test_a_store_without_a_branch_is_one_line(tmp_path) -> None:
    with Store(tmp_path / "store", base_digest(locate("miniature"))):
        pass
    with pytest.raises(UserError, match="store: no branch is in it yet"):
        command(tmp_path / "store", "--base=miniature", f"--out={tmp_path / 'out'}")


class Hub(ThreadingHTTPServer):
    """As much of the Hugging Face hub as a push needs. Files come within the commit."""

    def __init__(self, refusal=None):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.refusal = refusal
        self.repositories, self.files, self.tokens = [], {}, set()

    def make(self, repository):
        if self.refusal:
            return 403, {"error": self.refusal}
        self.repositories.append(repository)
        return 200, {"url": f"{self.url}/{repository['organization'] or 'me'}/{repository['name']}"}

    def look(self, upload):
        usual = {"uploadMode": "regular", "shouldIgnore": False}
        return 200, {"files": [{"path": file["path"]} | usual for file in upload["files"]]}

    def commit(self, *lines):
        files = [line["value"] for line in lines if line["key"] == "file"]
        self.files |= {file["path"]: base64.b64decode(file["content"]) for file in files}
        return 200, {"commitUrl": f"{self.url}/me/merged/commit/1", "commitOid": "1" * 40}


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self):
        self.answer(404, {"error": "Not found"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        routes = {
            "/api/repos/create": self.server.make,
            "/api/models/me/merged/preupload/main": self.server.look,
            "/api/models/me/merged/commit/main": self.server.commit,
            "/api/validate-yaml": lambda card: (200, {}),
        }
        self.server.tokens.add(self.headers["authorization"])
        self.answer(*routes[self.path](*map(json.loads, body.splitlines())))

    def answer(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def serving(hub):
    with hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


@pytest.fixture
def push(folders, tmp_path):
    """The whole command as a process: the library of the hub reads its variables once. The checkpoint is `out`."""

    def run(name, **variables):
        words = [folders["text"], folders["image"], "--base=miniature", f"--out={tmp_path / 'out'}", f"--push={name}"]
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE_"))}
        usual = {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_mine"}
        return subprocess.run(
            [sys.executable, "-m", "clients.cli", "merge", *map(str, words)],
            env=environ | usual | variables, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("name", ["me/merged", "merged"])
def test_a_push_sends_the_whole_checkpoint_to_a_private_repository(name, push, tmp_path) -> None:
    with serving(Hub()) as hub:
        done = push(name, HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"pushed: {hub.url}/me/merged"
    assert [(repository["name"], repository["visibility"]) for repository in hub.repositories] == [
        ("merged", "private")
    ]
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "README.md", RECORD} < hub.files.keys()
    assert hub.tokens == {"Bearer hf_mine"}


def test_what_the_hub_refuses_is_one_line_and_the_checkpoint_stays(push, tmp_path) -> None:
    with serving(Hub(refusal="You may not write to this namespace.")) as hub:
        done = push("me/merged", HF_ENDPOINT=hub.url)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "coevo merge: --push me/merged: the hub does not take it (You may not write to this namespace.); "
        f"{tmp_path}/out is whole; to send it later: hf upload me/merged {tmp_path}/out . --private"
    ]
    assert (tmp_path / "out" / RECORD).is_file()
    assert not hub.files


def test_a_hub_that_is_not_there_is_one_line(push, tmp_path) -> None:
    with serving(Hub()) as hub:
        pass
    done = push("me/merged", HF_ENDPOINT=hub.url)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "Connection refused); " in line
    assert (tmp_path / "out" / RECORD).is_file()


@pytest.mark.parametrize(
    ("name", "variables", "reason"),
    [
        ("me/merged", {"HF_TOKEN": ""}, "nobody is logged in to the hub; use `hf auth login`, or set HF_TOKEN"),
        ("me/merged", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE keeps it from the hub"),
        ("me/my/merged", {}, "no name of a repository; write OWNER/NAME"),
    ],
)
def test_what_keeps_a_push_from_the_hub_is_told_first(name, variables, reason, push, tmp_path) -> None:
    done = push(name, HF_ENDPOINT="http://127.0.0.1:9", **variables)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert reason in line
    assert not (tmp_path / "out").exists()
