"""Whether a model has a row for every id of a token store: those of text, and those of pictures past them."""

from __future__ import annotations

from ringworld.data.token_store import StoreInfo
from ringworld.errors import UserError
from ringworld.model.config import ModelConfig


def check_vocabularies(info: StoreInfo, model: ModelConfig, where: str) -> None:
    """Raise UserError, naming the store, where an id of it would have no row or another's."""
    if info.vocabulary_size > model.vocabulary:
        raise UserError(
            f"model.vocabulary={model.vocabulary} is smaller than the tokenizer's {info.vocabulary_size}; "
            f"set model.vocabulary to {info.vocabulary_size} or more"
        )
    if not info.vision_vocabulary:
        return
    if not model.vision_vocabulary:
        raise UserError(
            f"{where} has vision ids and the model is of text alone; train it as a stage of data=vision, which gives "
            f"the model rows for them, or on a store of text"
        )
    if info.vision_offset != model.vocabulary:
        raise UserError(
            f"{where}: vision ids begin at {info.vision_offset}, but the model's text has {model.vocabulary} ids; make "
            f"its stage again for this model"
        )
    if info.vision_vocabulary > model.vision_vocabulary:
        raise UserError(
            f"{where} has {info.vision_vocabulary} vision ids, the model {model.vision_vocabulary}; set "
            f"vision.vocabulary to {info.vision_vocabulary} or more"
        )
