"""The trainer: one process per host, started as `python -m ringworld.train`.

recipe.py      what a job is: the recipe (identity), the inputs (paths), the options (where and how)
optimizer.py   AdamW and its schedule
loss.py        cross entropy in chunks
step.py        the compiled step and the state it moves
flops.py       what a step costs, and what the device could do
checkpoint.py  durable states, through Orbax
progress.py    progress.jsonl
vigil.py       the watchdog, the request to stop
trainer.py     the loop
__main__.py    the command line and its exit codes
"""
