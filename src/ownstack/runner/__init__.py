"""The runner: steps that work on the target itself, in the standard library of Python 3.9 or newer.

It travels as a zipapp. `python3 runner.pyz STEP` reads a JSON specification on standard input and writes
JSON lines: progress events, then one `result` or `error`.
"""
