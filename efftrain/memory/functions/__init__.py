"""Autograd functions that keep what their gradients need and nothing else, one family a file.

Each `replace_*` takes the place of a function of torch and has its signature, after the scope. It
returns `NotImplemented` where torch's own keeps no more, or where it does not know the case.
"""
