"""The fault campaign: a small curriculum on a real cluster, struck again and again, and compared with a calm run.

    python -m tests.system.chaos --faults 50 --seed 7 --json verdict.json

`cluster` is what is struck, `volume` what its runs lie on, `scene` the flow that works there, `faults` what strikes,
`campaign` the loop, `verdict` the judge.
"""
