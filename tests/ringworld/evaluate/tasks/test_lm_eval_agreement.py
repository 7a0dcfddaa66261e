"""Our tasks against lm-eval's RULER: the same wording, each one's prompts read by the other's rules, the same scores.

Both sides ask one server, which answers by reading the prompt and is wrong by a rule of its own. Skipped where lm_eval,
wonderwords or nltk are not installed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from ringworld.data.tokenizers import Tokenizer, train_bpe
from ringworld.evaluate.tasks import wording
from ringworld.evaluate.tasks.answerers import ServerAnswerer, ServerOptions
from ringworld.evaluate.tasks.prompting import plain_text, prompting_of
from ringworld.evaluate.tasks.registry import ALONE
from ringworld.evaluate.tasks.scoring import score
from ringworld.evaluate.tasks.task import Ask, Example, make
from ringworld.evaluate.tasks.vocabulary import list_words
from tests.ringworld.corpus import prose
from tests.ringworld.evaluate.tasks.oracle import oracle
from tests.ringworld.evaluate.tasks.readers import read
from tests.ringworld.evaluate.tasks.world import checkpoint

lm_eval = pytest.importorskip("lm_eval")
punkt = pytest.importorskip("nltk.tokenize.punkt")
pytest.importorskip("wonderwords")

LENGTH, DOCUMENTS = 2048, 50
# Ours by the names of theirs. Theirs leaves the worked example out of cwe.
TASKS = {
    "niah_single_1": "niah_single_1", "niah_multikey_2": "niah_multikey_2", "niah_multikey_3": "niah_multikey_3",
    "ruler_vt": "vt", "ruler_cwe": "cwe_bare", "ruler_fwe": "fwe",
}  # fmt: skip
TOLERANCE = 3.5 * 0.5 / DOCUMENTS**0.5  # of the difference of two means of so many scores in 0..1, or less


def erring(prompt: str | list[int]) -> str:
    """The answers that stand in a prompt, without every third or so, chosen by their letters."""
    text = prompt if isinstance(prompt, str) else tokenizer().decode(prompt)
    kind = next(kind for sign, kind in SIGNS.items() if sign in text)
    said = [answer for answer in read(kind, text) if sum(answer.encode()) % 3]
    return f" {', '.join(said).upper()}\x07"


@cache
def tokenizer() -> Tokenizer:
    """One that knows the benchmarks' words: lm-eval's loops need prompts of few tokens."""
    said = [text for text in vars(wording).values() if isinstance(text, str)] * 20
    return train_bpe([*said, *(" ".join(list_words(600, np.random.default_rng(seed))) for seed in range(3))], 1500)


SIGNS = {"special magic": "niah", "VAR ": "vt", "numbered list": "cwe", "coded text": "fwe"}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Mapping[str, Any]:
    """What lm-eval logs of each task: samples with the prompt, the reply and the score; and the results."""
    import transformers

    folder = tmp_path_factory.mktemp("lm-eval")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NLTK_DATA", str(folder / "nltk"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        train_punkt(str(folder / "nltk"))
        raw = folder / "raw.json"
        raw.write_bytes(tokenizer().files["tokenizer.json"])
        fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(raw), eos_token="<|end|>")
        fast.save_pretrained(str(folder / "tokenizer"))
        manager = import_module("lm_eval.tasks").TaskManager
        place = str(folder / "tokenizer")
        metadata = {"tokenizer": place, "pretrained": place, "max_seq_lengths": [LENGTH]}
        with oracle(erring) as (url, _):
            given = {"model": "m", "base_url": f"{url}/completions", "tokenizer": place, "tokenized_requests": False}
            found = lm_eval.simple_evaluate(
                model="local-completions", model_args=given | {"max_length": LENGTH}, tasks=list(TASKS),
                limit=DOCUMENTS, task_manager=manager(metadata=metadata), log_samples=True, bootstrap_iters=0,
            )  # fmt: skip
    assert found is not None
    return found


def train_punkt(folder: str) -> None:
    """A sentence splitter made here: lm-eval would download one, though no task of these uses it."""
    os.makedirs(f"{folder}/tokenizers/punkt_tab/english")
    import_module("nltk").data.path.insert(0, folder)
    trainer = punkt.PunktTrainer()
    trainer.train(prose(0, 50), finalize=True)
    punkt.save_punkt_params(trainer.get_params(), dir=f"{folder}/tokenizers/punkt_tab/english")


@pytest.fixture(scope="module")
def ours() -> dict[str, list[Example]]:
    prompting = prompting_of(checkpoint(tokenizer()))
    return {
        name: [make(ALONE[own](own), Ask(LENGTH, None, (number,), prompting)) for number in range(DOCUMENTS)]
        for name, own in TASKS.items()
    }


def skeleton(text: str) -> set[str]:
    """The lines of a prompt with everything that is drawn taken out."""
    text = text.replace("list?\n\nAnswer", "list? Answer")  # theirs has an empty line there, RULER a space
    for pattern, name in (
        (r"(?<=words\. )(?:(?:[a-z]{6}|\.\.\.) ?)+(?=\n)", "CODED"),
        (r"(?<=\n)1\. .*(?=\nQuestion)", "LIST"),
        (r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
        (r"\b\d{7}\b", "NUMBER"),
        (r"\b\d{5}\b", "VALUE"),
        (r"(?<=for )[\w'.]+(?:[ -][\w'.]+)*-[\w'.]+(?:[ -][\w'.]+)*(?= is| mentioned)", "KEY"),
        (r"(?<=numbers for )[\w'. -]+(?=\n)", "KEY"),  # where ours ends in a key
        (r" ?VAR [A-Z]{3,5} = (?:VAR [A-Z]{3,5} |VALUE)", ""),
        (r"(?<=are:  )[A-Z]{3,5}(?: [A-Z]{3,5})*", "VARS"),
    ):
        text = re.sub(pattern, name, text)
    return {re.sub(r" +", " ", line).strip() for line in text.splitlines()} - {""}


@pytest.mark.parametrize("name", TASKS)
def test_the_wording_is_the_same(theirs, ours, name):
    mine = [skeleton(plain_text(example.draft)) for example in ours[name]]
    for sample in theirs["samples"][name]:
        [(prompt, _)] = sample["arguments"]
        their = skeleton(prompt)
        for own in mine[:10]:
            # Ours ends in a part of a line, where theirs ends with a whole one.
            parts = {line for line in own - their if any(line in whole for whole in their)}
            assert own - parts == their


@pytest.mark.parametrize("name", TASKS)
def test_each_side_grades_a_reply_as_the_other_does(theirs, name):
    for sample in theirs["samples"][name]:
        [reply] = sample["filtered_resps"]
        assert score(reply, sample["doc"]["outputs"], "all") == pytest.approx(sample[str(LENGTH)])


@pytest.mark.parametrize("name", TASKS)
def test_scores_of_one_model_agree(theirs, ours, name):
    their = [sample[str(LENGTH)] for sample in theirs["samples"][name]]
    with oracle(erring) as (url, _):
        said = dict(ServerAnswerer(ServerOptions(url, "m")).answers(ours[name]))
    own = [score(said[n].text, example.draft.answers, "all") for n, example in enumerate(ours[name])]
    assert len(their) == len(own) == DOCUMENTS
    assert 0.2 < np.mean(own) < 0.95
    assert np.mean(own) == pytest.approx(np.mean(their), abs=TOLERANCE)


@pytest.mark.parametrize("name", TASKS)
def test_ours_is_as_long_as_it_may_be_and_theirs_no_longer(theirs, ours, name):
    room = ours[name][0].room
    for example in ours[name]:
        assert LENGTH - 80 <= len(example.ids) + room <= LENGTH
    if name != "ruler_fwe":  # theirs leaves no room for the answer there
        for sample in theirs["samples"][name]:
            assert sample["doc"]["length"] <= LENGTH
