"""`i2vgen serve` and its keys on the command line: what is refused before anything starts, and what is printed."""

from __future__ import annotations

import json
import socket

import pytest

from i2vgen.server import run as server_run
from i2vgen.server.config import ServiceConfig
from i2vgen.server.database import open_database
from i2vgen.server.keys import KeyStore


@pytest.fixture
def served(monkeypatch):
    """What would be served, in place of serving it."""
    found = []
    monkeypatch.setattr(server_run, "serve", lambda config, engine="local": found.append((config, engine)))
    monkeypatch.setattr(server_run, "work", lambda config: found.append((config, "workers")))
    return found


def test_keys_are_made_listed_and_revoked(run, tmp_path):
    data = ("--data", tmp_path / "data")
    added = run("serve", "keys", "add", "ana", "--max-queued", "3", *data)
    text = added.out.strip()
    assert (added.code, text.split("_")[0]) == (0, "i2vgen")
    store = KeyStore(open_database(ServiceConfig(data=str(tmp_path / "data")).database_url))
    assert store.verify(text).max_queued == 3
    assert text not in run("serve", "keys", "list", *data).out
    listed = json.loads(run("serve", "keys", "list", "--json", *data).out)["keys"]
    assert [(key["name"], key["revoked_at"]) for key in listed] == [("ana", None)]
    assert "is revoked" in run("serve", "keys", "revoke", "ana", *data).out
    assert store.verify(text) is None
    again = run("serve", "keys", "revoke", "ana", *data)
    assert (again.code, again.err.count("\n")) == (2, 1)


def test_options_become_a_config(run, served, tmp_path, tiny_cascade_dir):
    options = ["--data", tmp_path / "data", "--model", tiny_cascade_dir, "--name", "a", "--name", "b"]
    options += ["--device", "cuda", "--workers", "2", "--max-frames", "9", "--retention-hours", "0.5"]
    assert run("serve", *options).code == 0
    config, engine = served[0]
    assert (config.devices, config.model.names, engine) == (("cuda:0", "cuda:1"), ("a", "b"), "local")
    assert (config.limits.max_frames, config.limits.retention_seconds) == (9, 1800)
    assert run("serve", "--data", tmp_path, "--engine", "ray").code == 0
    assert (served[1][0].devices, served[1][1]) == ((), "ray")
    assert run("serve", "--data", tmp_path, "--workers-only", "--device", "cpu").code == 0
    assert (served[2][0].devices, served[2][1]) == (("cpu",), "workers")


@pytest.mark.parametrize(
    "options,message",
    [
        (["--model", "/nowhere/at/all"], "no folder at"),
        (["--host", "0.0.0.0"], "keys add NAME"),
        (["--workers", "-1"], "--workers -1"),
        (["--device", "cpu", "--device", "cpu", "--workers", "3"], "2 devices are named"),
        (["--safety", "nothing"], "module:function"),
        (["--sign", "json:nothing"], "no function 'nothing'"),
        (["--batch-size", "0"], "batch_size 0"),
        (["--max-frames", "-1"], "max_frames -1"),
        (["--data", "memory://x"], "--database"),
        (["--database", "nosuch://x"], "nosuch"),
        (["--lora", "/nowhere.safetensors:x"], "--lora"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(run, tmp_path, options, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("serve", *options, *([] if "--port" in options else ["--port", "0"]))
    assert result.code in (1, 2)
    assert message in result.err
    assert result.err.count("error:") == 1


def test_others_may_reach_it_once_there_is_a_key(run, served, tmp_path):
    data = ("--data", tmp_path / "data", "--host", "0.0.0.0")
    assert run("serve", *data).code == 2
    assert run("serve", *data, "--no-keys").code == 0
    run("serve", "keys", "add", "ana", *data[:2])
    assert run("serve", *data).code == 0
    assert len(served) == 2


def test_a_port_in_use_is_said_before_a_model_is_loaded(run, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        result = run("serve", "--data", tmp_path, "--port", other.getsockname()[1])
    assert (result.code, "cannot be listened on" in result.err) == (1, True)
