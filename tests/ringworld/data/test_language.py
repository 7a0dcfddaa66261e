"""A text's language, and how much of it is in it."""

from __future__ import annotations

import pytest

from ringworld.data.language import identify

TEXTS = {
    "en": "It was the best of times, it was the worst of times, it was the age of wisdom, and nobody knew what to do. ",
    "de": "Als Gregor Samsa eines Morgens aus unruhigen Träumen erwachte, fand er sich in seinem Bett verwandelt. ",
    "fr": "Longtemps, je me suis couché de bonne heure, et parfois mes yeux se fermaient si vite que je dormais. ",
    "es": "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo que vivía un hidalgo. ",
    "ru": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. ",  # noqa: RUF001
    "zh": "今天天气很好，我们一起去公园散步，然后回家吃晚饭。他说明天要去北京工作，所以今天晚上必须早点睡觉。",  # noqa: RUF001
    "ja": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗い所で泣いていた。",
}


@pytest.mark.parametrize("code", TEXTS)
@pytest.mark.parametrize("times", [1, 100])
def test_a_text_is_in_its_language(code: str, times: int) -> None:
    assert identify(TEXTS[code] * times) == (code, 1.0)


def test_a_mixture_says_how_much_of_it_agrees() -> None:
    found = identify(TEXTS["en"] * 60 + TEXTS["de"] * 20)
    assert found.code == "en"
    assert 0.6 < found.share < 0.9


@pytest.mark.parametrize("text", ["", "1 2 3 4 5", "=" * 5000])
def test_without_letters_there_is_no_language(text: str) -> None:
    assert identify(text) == ("und", 0.0)
