"""The model: a Llama in Flax NNX, its rotary positions, and the table that says how its dimensions lie on a mesh."""
