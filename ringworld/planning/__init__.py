"""Planning: what a training stage needs of a machine, known before anybody pays for one.

hardware    what a chip holds and moves; a placement's words as a machine
memory      bytes of a chip by part, from shapes: an estimate in microseconds
roofline    seconds of a step, from counted work and counted traffic
search      meshes and memory rungs that fit, the fastest first
aot         the real compiler's answer for hardware that is not here, in processes of its own, cached
"""
