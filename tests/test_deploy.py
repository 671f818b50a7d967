"""The files for deployment: they are valid, and every command in them is one that `i2vgen serve` takes."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from i2vgen.cli.app import app

FOLDER = Path(__file__).parent.parent / "deploy"
DOCKERFILE = FOLDER / "Dockerfile"
MANIFESTS = sorted((FOLDER / "kubernetes").glob("*.yaml"))


def documents(path: Path) -> list[dict]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def tool(name: str) -> str:
    """A linter beside this Python, or on the path; skips without it."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    return found or pytest.skip(f"{name} is not installed")


def served(arguments: list[str]) -> dict:
    """What `i2vgen serve ARGUMENTS` would be told. Raises for an option that it has not."""
    serve = typer.main.get_command(app).commands["serve"]
    return serve.make_context("serve", list(arguments)).params


def containers(document: dict) -> list[dict]:
    pods = []
    if document["kind"] == "Deployment":
        pods = [document["spec"]["template"]["spec"]]
    if document["kind"] == "RayJob":
        cluster = document["spec"]["rayClusterSpec"]
        pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return [(pod, container) for pod in pods for container in pod["containers"]]


def test_the_image_serves():
    command = [
        json.loads(line.split(" ", 1)[1]) for line in DOCKERFILE.read_text().splitlines() if line.startswith("CMD")
    ]
    assert served(command[0])["host"] == "0.0.0.0"
    text = DOCKERFILE.read_text()
    assert re.search(r"^USER 10001$", text, re.M)
    for name in re.findall(r"^COPY (?!--from)(.+) \\S+$", text, re.M):
        for file in name.split():
            assert (FOLDER.parent / file).exists(), file


def test_compose():
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    assert served(services["api"]["command"])["workers"] == 0
    assert served(services["worker"]["command"])["workers_only"]
    assert services["api"]["ports"] == ["127.0.0.1:8000:8000"]
    grace = int(services["worker"]["stop_grace_period"].removesuffix("s"))
    assert grace > served(services["worker"]["command"])["drain"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_commands(path):
    num_commands = 0
    for document in documents(path):
        if document["kind"] == "RayJob":
            assert served(shlex.split(document["spec"]["entrypoint"])[2:])["engine"] == "ray"
            num_commands += 1
        for pod, container in containers(document):
            if "args" in container:
                num_commands += 1
                assert pod["terminationGracePeriodSeconds"] > served(container["args"])["drain"]
            volumes = {volume["name"] for volume in pod["volumes"]}
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    assert num_commands


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_schema(path):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for document in documents(path):
        if document["apiVersion"] != "ray.io/v1":  # of KubeRay, which the schemas do not know
            kubernetes_validate.validate(document, "1.34", strict=True)


def test_linters():
    subprocess.run([tool("hadolint"), "--failure-threshold", "info", str(DOCKERFILE)], check=True)
    rules = (
        "{extends: default, rules: {line-length: {max: 120}, document-start: disable, comments-indentation: disable}}"
    )
    subprocess.run([tool("yamllint"), "--strict", "-d", rules, str(FOLDER)], check=True)
