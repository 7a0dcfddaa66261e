"""Long-context tasks at any length: is what stands somewhere in a long prompt found, tracked, counted?

task.py         what a task is, and an example of one at an exact length
fitting.py      how many pieces fill a length
pieces.py       words that a prompt is filled with, and needles between them
haystack.py     documents that needles are hidden in, never training ones
wording.py      the benchmarks' texts, word for word; vocabulary.py: words that are drawn

needles.py      RULER's needles, a pass key, several cities; talk.py: a needle in a chat
variables.py    variable tracking; counting.py: common and frequent words
questions.py    questions about given texts; key_values.py: a JSON object of UUIDs
names.py        all of them by name; registry.py: what each name makes

prompting.py    from a draft to a model's tokens: as text, or through the chat template
scoring.py      string matches, effective length
answerers.py    who answers: an engine in this process, or a server
grid.py         task x length x depth, cell by cell, resumable
report.py       the table and the picture
of_stage.py     what is asked after a stage of a curriculum
__main__.py     the command line
"""
