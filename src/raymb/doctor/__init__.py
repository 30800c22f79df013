"""Is this environment able to train: each check gives findings (ok, warning or error) with the way out.

A machine describes itself (machine.py), here or in a task on each node of a cluster; the rooms beside it judge what it
says. Whatever may hang runs in a process of its own and is given up after its time. `tested` is the directory of pinned
versions of the project itself.
"""
