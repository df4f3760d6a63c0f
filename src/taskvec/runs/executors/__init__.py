"""Where the results of an experiment are made: in this process, in several, on other machines.

One process, the *driver*, holds the run folder and is the only one that writes records. A *worker* makes one
result after the other, and asks the driver for what it needs besides: a record, a name that no other worker
may hold meanwhile, the next job. An executor says where workers live (``executor.py``, ``spread.py``).
"""
