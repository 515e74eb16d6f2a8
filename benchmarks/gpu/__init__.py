"""The campaign for a real GPU: are the numbers right, where does the time go, does the service hold.

`plan.py` has every step with its goals, in the order of their value; a step is a module of `setup`, `numbers`,
`time` or `service` with a function `run(testbed, findings)`, and runs in a process of its own.
"""
