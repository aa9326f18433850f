"""The benchmark: what packing costs and saves, beside what a user would do instead, with every raw sample kept.

It measures the engine and changes nothing in it. Nothing below imports this package.
"""
