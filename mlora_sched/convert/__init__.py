"""Read other trainers' configs (Axolotl, LLaMA-Factory) into job specs, and account for every key of them.

`build.convert` takes a decoded document and gives a `result.Conversion`. Nothing here opens a file or prints.
"""
