"""Readers of the tasks' prompts that share nothing with what wrote them: each finds the answers in the text alone."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping

_PAIR = re.compile(r"One of the special magic (?:numbers|uuids|words) for (\S+) is: (\S+?)\.(?=\s|$)")


def needles(text: str) -> list[str]:
    planted: dict[str, list[str]] = {}
    for key, value in _PAIR.findall(text):
        planted.setdefault(key, []).append(value)
    [asked] = re.findall(r"\nWhat (?:is|are all) the special magic \w+ for (.*?) mentioned in", text)
    return [value for key in re.split(r", and |, ", asked) for value in planted[key]]


def talk(text: str) -> list[str]:
    [key] = re.findall(r"What is the special magic number for (\S+) that I told you", text)
    return [value for planted, value in _PAIR.findall(text) if planted == key]


def cities(text: str) -> list[str]:
    planted = dict(re.findall(r"\nThe special magic (\S+) number is: (\d{7})\n", text))
    [asked] = re.findall(r"What (?:is|are) the special magic numbers? for (.*?)\? Don't", text)
    return [planted[city] for city in re.split(r", and |, ", asked)]


def passkey(text: str) -> list[str]:
    return re.findall(r"The pass key is (\d{5})\. Remember it\. \1 is the pass key\.", text)


def variables(text: str) -> list[str]:
    text = text[text.rindex("Memorize and track") :]
    [value] = re.findall(r"assigned the value (\d+) in the text above", text)
    found = re.findall(rf"VAR (\w+) = {value}\b", text)
    sources = dict(re.findall(r"VAR (\w+) = VAR (\w+)", text))
    while more := [name for name, source in sources.items() if source in found and name not in found]:
        found += more
    return found


def common(text: str) -> list[str]:
    text = text[text.rindex("Below is a numbered list") :]
    listed = re.findall(r"\b\d+\. (\S+)", text[: text.index("\nQuestion:")])
    return [word for word, _ in Counter(listed).most_common(10)]


def frequent(text: str) -> list[str]:
    coded = text[text.index("coded words. ") + len("coded words. ") : text.index("\nQuestion:")]
    counts = Counter(word for word in coded.split() if word != "...").most_common(4)
    assert counts[2][1] > counts[3][1]
    return [word for word, _ in counts[:3]]


def key_values(text: str) -> list[str]:
    pairs = json.loads(text[text.index("{") : text.index("}") + 1])
    [key] = re.findall(r'\n\nKey: "(.*?)"\n', text)
    return [pairs[key]]


def questions(text: str) -> list[str]:
    [number] = re.findall(r"Question: What is the captain of text (\d+)\?", text)
    return [said for said in re.findall(r"The captain is (number \d+)\.", text) if said == f"number {number}"]


READERS: Mapping[str, Callable[[str], list[str]]] = {
    "niah": needles,
    "niah_chat": talk,
    "cities": cities,
    "passkey": passkey,
    "vt": variables,
    "cwe": common,
    "fwe": frequent,
    "kv": key_values,
    "qa": questions,
}


def read(task: str, text: str) -> list[str]:
    """The answers to a task's prompt."""
    reader = READERS.get(task) or READERS[task.partition("_")[0]]
    return reader(text)
