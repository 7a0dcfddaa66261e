"""The tokenizer's artifact carries the template of conversations, and is another one where that is another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ringworld.data.templates import JinjaTemplate, PlainTemplate, source_of, template_of
from ringworld.data.tokenizers import load_tokenizer
from ringworld.errors import UserError
from ringworld.generate.checkpoint import open_tokenizer
from stages import tokenizer
from stages.tokenizer import TokenizerRecipe

TEMPLATE = "{% for m in messages %}{{ m.role + ' ' + m.content + eos_token }}{% endfor %}{{ 'assistant' }}"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    words = ["<end>", "a", "user", "assistant", "unknown"]
    model = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="unknown"))
    own = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<end>")
    own.chat_template = TEMPLATE.replace("{{ 'assistant' }}", "")
    own.save_pretrained(tmp_path / "own")
    return str(tmp_path / "own")


def test_a_template_is_the_folders_own_the_plain_one_or_a_file(folder: str, tmp_path: Path, run_stage: Any) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(TEMPLATE.replace("{{ 'assistant' }}", "\n"))
    made = {
        choice: run_stage(tokenizer, TokenizerRecipe("huggingface", path=folder, template=choice))
        for choice in ("own", "plain", str(file))
    }
    file.unlink()
    loaded = {choice: load_tokenizer(artifact.path("tokenizer")) for choice, artifact in made.items()}
    assert source_of(loaded["own"]) == TEMPLATE.replace("{{ 'assistant' }}", "")
    assert isinstance(template_of(loaded["plain"]), PlainTemplate)
    assert isinstance(template_of(loaded[str(file)]), JinjaTemplate)
    assert len({artifact.values["hash"] for artifact in made.values()}) == 3
    assert len({artifact.values["template"]["hash"] for artifact in made.values()}) == 3
    assert [artifact.values["template"]["name"] for artifact in made.values()] == ["jinja", "plain", "jinja"]
    # Who runs a model that was trained with it reads the same.
    assert source_of(open_tokenizer(made["own"].path("tokenizer"))) == source_of(loaded["own"])
    assert run_stage(tokenizer, TokenizerRecipe("bytes")).values["template"]["name"] == "plain"


def test_a_template_that_cannot_be_trained_with_stops_the_stage(folder: str, tmp_path: Path, run_stage: Any) -> None:
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for m in messages %}\n{{ m.content }}\n{% endfor %\n")
    with pytest.raises(UserError, match=rf"tokenizer\.template={broken}: .*, line 3: "):
        run_stage(tokenizer, TokenizerRecipe("huggingface", path=folder, template=str(broken)))
    # In a prompt, this one writes what it does not write in the whole conversation.
    broken.write_text(TEMPLATE.replace("'assistant'", "'bot'"))
    with pytest.raises(UserError, match="asks for turn 2 by a prompt that the whole conversation does not begin with"):
        run_stage(tokenizer, TokenizerRecipe("bytes", template=str(broken)))
