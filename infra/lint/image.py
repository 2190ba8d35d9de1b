"""Rules for the Dockerfile and the compose file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from workflows.manifests.site import is_pinned

from .documents import Problem, found_in
from .pods import SECRET_NAME, SECRET_TEXT

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = ("", "0", "root")
GIVEN = re.compile(r"\$\{\w+:\?")
"""a variable that has to be set for Compose to start"""


def dockerfile_problems(text: str, name: str) -> Iterator[Problem]:
    """What is wrong with a Dockerfile."""
    instructions = list(_instructions(text))
    values = dict(words.split("=", 1) for _, word, words in instructions if word == "ARG" and "=" in words)
    stages = {words.split()[2] for _, word, words in instructions if word == "FROM" and " AS " in words.upper()}
    for line, word, words in instructions:
        yield from (Problem(name, f"line {line}", rule) for rule in _instruction(word, words, values, stages))
    last = max((index for index, (_, word, _) in enumerate(instructions) if word == "FROM"), default=0)
    final = {word: words for _, word, words in instructions[last:]}
    if final.get("USER", "").partition(":")[0] in ROOT or not final["USER"].partition(":")[0].isdecimal():
        yield Problem(name, "USER", "the last stage must run as a user that is not root, by its number")
    if "HEALTHCHECK" not in final:
        yield Problem(name, "HEALTHCHECK", "the last stage must have one")


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, word and what follows; continued lines in one."""
    whole, begun = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not (line.strip() or whole):
            continue
        begun = begun if whole else number
        whole += line.strip().removesuffix("\\")
        if not line.rstrip().endswith("\\"):
            word, _, words = whole.strip().partition(" ")
            yield begun, word.upper(), words.strip()
            whole = ""


def _instruction(word: str, words: str, values: dict[str, str], stages: set[str]) -> Iterator[str]:
    if word == "FROM":
        image = re.sub(r"\$\{?(\w+)\}?", lambda found: values.get(found[1], ""), words.split()[0])
        if image not in stages and not is_pinned(image):
            yield f"FROM must have a tag other than latest, or a digest, got {image!r}"
    if word in ("ARG", "ENV") and any(map(SECRET_NAME.search, re.findall(r"(?:^|\s)(\w+)(?==|$)", words))):
        yield f"{word} must hold no secret: it stays in the image"
    if word == "ADD":
        yield "COPY must be used in place of ADD, which fetches and unpacks"
    if word == "RUN" and "pip install" in words and not re.search(r"(-c|--constraint) ", words):
        yield "pip install must heed the constraints (-c)"
    if word == "RUN" and re.search(r"(curl|wget)[^|]*\|\s*(ba)?sh", words):
        yield "a script must not be run as it is fetched"


def compose_problems(text: str, name: str) -> Iterator[Problem]:
    """What is wrong with a compose file."""
    body = yaml.safe_load(text)
    for service, settings in body.get("services", {}).items():
        for at, rule in _service(settings):
            yield Problem(name, f"services.{service}{at}", rule)
    for path, value in found_in(body):
        if isinstance(value, str) and SECRET_TEXT.search(value):
            yield Problem(name, path, "a secret must not stand in clear")


def _service(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if not is_pinned(str(settings.get("image", ""))):
        yield ".image", f"must have a tag other than latest, or a digest, got {settings.get('image')!r}"
    if str(settings.get("user", "")).partition(":")[0] in ROOT or settings.get("privileged"):
        yield ".user", "must not be root, nor privileged"
    for key, value in settings.get("environment", {}).items():
        if SECRET_NAME.search(key) and not GIVEN.match(str(value)):
            yield f".environment.{key}", "must be a variable that has to be given: ${NAME:?…}"
    for index, port in enumerate(settings.get("ports", [])):
        if not str(port).startswith("127.0.0.1:"):
            yield f".ports[{index}]", f"must be published on 127.0.0.1 alone, got {port!r}"
    if "memory" not in settings.get("deploy", {}).get("resources", {}).get("limits", {}):
        yield ".deploy.resources.limits.memory", "must be given"
