"""Adapter methods: parameters, forward and backward of each, behind one contract (`base.Adapter`).

One file a method and one line in `registry`. Nothing here knows packs of several jobs, steps or files.
"""
