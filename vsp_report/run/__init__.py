"""Run: cases become recordings. Notebooks are executed here; what they compute is not known here.

    plan        which cases need running, and in what order
    kernel      papermill's engine with one kernel for many notebooks
    resident    what stays in that kernel, and holds it to what it was
    task        one case, one notebook, one recording
    executors   where tasks run: here, several at once, or on a cluster
    batch       many cases, and what is said of them meanwhile
"""
