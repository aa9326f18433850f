"""Files of a job: exported adapters, checkpoints, provenance. Written atomically; safetensors and JSON only are read.

Nothing here trains or decides when to save.
"""
