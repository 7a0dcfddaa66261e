"""Evaluation of a stage's weights against the weights it started from, on held-out documents.

recipe.py            what is measured
loss_by_position.py  does the model use what lies further back? loss of each position, before and after the stage
needle.py            can it find one sentence in a long text? prompts for a grid of lengths and depths
scorer.py            one compiled forward pass that serves both
pictures.py          their PNGs
__main__.py          the command line
"""
