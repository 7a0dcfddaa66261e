"""From raw files to batches: sources, readers, cleaning, tokenizers, the token store, packing and the loader.

One datum's walk: a file is found (`sources`), read (`readers`), cleaned (`clean`), turned into ids (`tokenizers`),
stored once, flat (`token_store`), placed in rows by a plan (`packing`) and read back as a step's batch (`loader`).
Nothing here knows Ray: the stages call these functions from wherever they run.
"""
