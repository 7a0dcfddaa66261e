"""Text and pictures from a finished model: a sampler for long prompts, a chat, a drawer, and an endpoint that OpenAI's
clients talk to.

    checkpoint    what a folder holds: sizes, rotary positions, where the weights lie, the tokenizer, its chat template
    cache         where the keys and values of a slot's tokens lie on the mesh
    attend        attention of a chunk of a prompt, or of one token a slot, to that cache
    forward       the model's layers over the cache, for one shard
    sampling      logits to tokens
    programs      the two compiled programs: a chunk of prompts, a token for every slot
    chunks        how prompts are cut, and how long a slot is
    engine        requests come and go between steps: slots, chunks of prompts, reuse of prefixes
    text          tokens to text as they come: whole characters, never a part of a stop string
    sampler       the engine and the text together; what evaluation and synthesis call
    chat          turns to the tokens of a prompt
    frames        the compiled program of a frame's codes, with classifier-free guidance
    drawing       prompts to the codes of images and videos
    sight         the VQGAN of a checkpoint, and how clips were shown to it
    seeing, saving    files to codes, and pictures to files
    protocol, service, server    OpenAI's requests and replies; the sampler in a thread of its own; HTTP

Nothing here knows Ray. The command lines run in one process on several devices; an engine also runs in several
processes that all tell theirs the same, as evaluations do.
"""
