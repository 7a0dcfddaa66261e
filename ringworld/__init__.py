"""The ring-attention trainer as a library: attention, model, data, train, evaluate.

It knows nothing of Ray, MLflow, OmegaConf or the folders above it, and runs without them. Everything that a person or a
cluster needs from it is a command line (`python -m ringworld.train`), files and exit codes.
"""
