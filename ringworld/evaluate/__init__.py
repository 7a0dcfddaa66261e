"""Evaluation of a stage's weights against the weights it started from, on held-out documents.

recipe.py            what is measured
held_out.py          held-out documents as rows: windows of text, whole examples
scorer.py            one compiled forward pass that serves all losses
loss_by_position.py  does the model use what lies further back? loss of each position, before and after the stage
needle.py            can it find one sentence in a long text? prompts for a grid of lengths and depths
context.py           what is more context worth, and is short text forgotten?
tasks/               long-context tasks at any length: RULER's and others, by the sampler or a server

harness.py           what EleutherAI's harness asks of a model; lm_eval.py joins the two
positions.py         how far is it read past its context without training, by rule of positions?

answers.py           of a chat stage: what do the answers of held-out conversations cost?
passages.py          how deep in its prompt is an answer given?
asking.py            what does it answer itself? greedily, graded by grading.py
transcripts.py       a few of its answers, to read
chat.py              the figures of these

seen_loss.py         of a vision stage: what do text and pictures of held-out examples cost?
video_needle.py      can it find one marked frame (marked_frames.py) in a long video?
samples.py           what does it draw from held-out captions?
vision.py            where these are read from; vision_figures.py: the figures

pictures.py          the PNGs
evaluator.py         all of it, in order
__main__.py          the command line
"""
