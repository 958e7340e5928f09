"""Hub ids: what is asked for, what is said where the Hub is not there, and that its cache is enough."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import oracles
import pytest

from backends import hub
from backends.errors import InputError
from backends.layouts import csm
from csm_mlx import CSM
from csm_mlx.companions import load_codec, load_tokenizer

choose = partial(csm.choose_files, source="--model")
LOADERS = {
    "--model": (CSM.from_pretrained, "sesame/csm-1b"),
    "--codec": (load_codec, "kyutai/moshiko-pytorch-bf16"),
    "--tokenizer": (load_tokenizer, "unsloth/Llama-3.2-1B"),
}
SAYS = """
import sys, time
from backends.errors import InputError
from csm_mlx import CSM
from csm_mlx.companions import load_codec, load_tokenizer
import huggingface_hub, mlx.core
for load in (CSM.from_pretrained, load_codec, load_tokenizer):
    start = time.perf_counter()
    try:
        load(sys.argv[1])
        print("loaded")
    except InputError as error:
        print(f"{time.perf_counter() - start:.1f} {error}")
"""


@pytest.mark.parametrize("option", LOADERS)
def test_offline_says_what_is_missing_and_how_to_provide_it(option, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    load, name = LOADERS[option]
    start = time.perf_counter()
    with pytest.raises(InputError) as caught:
        load(name)
    assert time.perf_counter() - start < 5
    assert str(caught.value) == (
        f"{option} {name}: there is no such directory, the Hub cannot be reached and its files are not in the local "
        f"cache; fetch them where there is a network (hf download {name} --local-dir DIR) and give {option} DIR"
    )


@pytest.fixture
def speak(tmp_path):
    """Run the three loaders in a fresh process, whose Hub is at `endpoint`; returns their lines."""

    def run(endpoint: str, *, offline: bool = False, timeout_s: float | None = None) -> list[str]:
        patience = f"from backends import hub; hub.TIMEOUT_S = {timeout_s}\n" if timeout_s else ""
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        argv = [sys.executable, "-c", patience + SAYS, "maker/small"]
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_a_refused_connection_is_one_quick_line(speak):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, but nobody listens
        lines = speak(f"http://127.0.0.1:{free.getsockname()[1]}")
    assert len(lines) == 3
    for line, option in zip(lines, LOADERS, strict=True):
        seconds, _, said = line.partition(" ")
        assert float(seconds) < 5
        assert said.startswith(f"{option} maker/small: there is no such directory, the Hub cannot be reached")


def test_a_hub_that_does_not_answer_is_given_up(speak):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        lines = speak(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.5)
    for line in lines:
        seconds, _, said = line.partition(" ")
        assert 0.4 < float(seconds) < 5
        assert "the Hub cannot be reached" in said
    assert hub.TIMEOUT_S * 2 < 15


COMMIT = "0" * 39 + "1"


class Repository(http.server.BaseHTTPRequestHandler):
    """The parts of the Hub's interface that downloading uses, over the files of a folder."""

    folder: Path
    asked: list[str]

    def do_GET(self):  # noqa: N802
        path = self.path.partition("?")[0]
        names = sorted(file.relative_to(self.folder).as_posix() for file in self.folder.rglob("*") if file.is_file())
        if path.startswith("/api/models/maker/small/tree/"):
            entries = [
                {"type": "file", "path": name, "size": (self.folder / name).stat().st_size, "oid": name}
                for name in names
            ]
            return self._json(entries)
        if path.startswith("/api/models/maker/small"):
            return self._json({"id": "maker/small", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]})
        return self._file(path)

    def do_HEAD(self):  # noqa: N802
        self._file(self.path)

    def _file(self, path: str) -> None:
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if not name or not (self.folder / name).is_file():
            self.send_response(404)
            self.end_headers()
            return
        content = (self.folder / name).read_bytes()
        self.send_response(200)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"', "Content-Length": str(len(content))}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.asked.append(name)
            self.wfile.write(content)

    def _json(self, content) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def repository(tmp_path):
    """A Hub with one repository that holds two copies of a model; (its address, what was downloaded)."""
    folder = tmp_path / "repository"
    oracles.csm(folder)
    (folder / "ckpt.pt").write_bytes(b"the other copy")
    (folder / "README.md").write_text("words")
    tokenizer = Path(__file__).parents[1] / "csm_mlx" / "assets" / "tiny_tokenizer.json"
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    handler = type("Handler", (Repository,), {"folder": folder, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()
    server.server_close()


def test_one_copy_is_downloaded_and_then_the_cache_is_enough(repository, speak):
    endpoint, asked = repository
    assert speak(endpoint) == ["loaded"] * 3
    assert sorted(asked) == ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert speak(endpoint, offline=True) == ["loaded"] * 3
    assert speak("http://127.0.0.1:9") == ["loaded"] * 3
    assert len(asked) == 4


class Answer:
    """Stands for the Hub's client: lists files, or fails."""

    def __init__(self, monkeypatch, files=(), listing=None, download=None):
        self.requests: list[list[str]] = []
        self.files, self.listing, self.download = files, listing, download
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: self)
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.snapshot_download)

    def model_info(self, name, revision=None, timeout=None):
        assert timeout is not None
        assert timeout <= 10
        if self.listing:
            raise self.listing
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in self.files])

    def snapshot_download(self, name, revision=None, allow_patterns=None, local_files_only=False):
        if local_files_only:
            raise FileNotFoundError
        self.requests.append(allow_patterns)
        if self.download:
            raise self.download
        return "/the/cache"


SESAME = [
    "README.md", "ckpt.pt", "config.json", "model.safetensors", "prompts/conversational_a.wav", "tokenizer.json",
    "transformers-00001-of-00002.safetensors", "transformers-00002-of-00002.safetensors",
    "transformers.safetensors.index.json",
]  # fmt: skip


def test_only_one_layouts_files_are_requested(monkeypatch):
    answer = Answer(monkeypatch, SESAME)
    assert hub.directory("sesame/csm-1b", choose, "--model") == Path("/the/cache")
    assert sorted(answer.requests[0]) == [
        "config.json", "tokenizer.json", "transformers-00001-of-00002.safetensors",
        "transformers-00002-of-00002.safetensors", "transformers.safetensors.index.json",
    ]  # fmt: skip


def http_error(kind: str):
    import huggingface_hub.errors as errors

    response = SimpleNamespace(headers={}, request=None, status_code=403, text="")
    return getattr(errors, kind)("refused", response=response)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("GatedRepoError", "accept its licence at huggingface.co/sesame/csm-1b, then log in with: hf auth login"),
        ("RepositoryNotFoundError", "neither a local directory nor a repository on the Hub that you may read"),
        ("RevisionNotFoundError", "the repository has no such revision"),
        ("HfHubHTTPError", "there is no such directory, the Hub cannot be reached"),
    ],
)
@pytest.mark.parametrize("when", ["listing", "download"])
def test_what_the_hub_refuses_is_said(monkeypatch, kind, said, when):
    Answer(monkeypatch, SESAME, **{when: http_error(kind)})
    with pytest.raises(InputError) as caught:
        hub.directory("sesame/csm-1b@v2", choose, "--model")
    assert str(caught.value).startswith(f"--model sesame/csm-1b@v2: {said}")
    assert "\n" not in str(caught.value)


def test_a_repository_without_weights_is_said(monkeypatch):
    Answer(monkeypatch, ["README.md"])
    with pytest.raises(InputError, match=r"^--codec maker/empty: holds none of tokenizer-e351c8d8"):
        load_codec("maker/empty")
    with pytest.raises(InputError, match=r"^--tokenizer maker/empty: holds no tokenizer.json"):
        load_tokenizer("maker/empty")
    with pytest.raises(InputError, match=r"^--model maker/empty: holds none of transformers.safetensors"):
        CSM.from_pretrained("maker/empty")


@pytest.mark.parametrize("source", ["", "no/such/folder", "./nothing/here", "word", "/not/there", "what is/this?"])
def test_neither_a_directory_nor_a_hub_id(source):
    with pytest.raises(InputError, match="no such directory, and not a Hub id such as org/name"):
        hub.directory(source, choose, "--model")
