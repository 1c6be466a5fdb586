"""Live: read a case, doubt it, try something else, and see the model answer. One panel, three hosts.

    asked       what a panel may ask: a message in; frozen values, or a fault in words, out
    rounds      one round on the model: streamed, looked at, compared with controls. By the way that cases go
    saving      a round becomes a case file
    panel       the kernel's side: one worker, a short queue; for the page a comm, for a notebook a widget
    extension   the Jupyter Server extension: the site and one kernel, on one origin, and nothing else
    server      starts it on this machine, lets its owner in, and sweeps what a killed one left

`asked`, `saving`, `extension` and `server` never load torch; `rounds` and `panel` run inside the kernel. The third
host, the page alone, needs none of this: `render/replay.py` gives it what was recorded.
"""
