"""A base model to try things on, made on the spot: corpus, tokenizer, training, and the example jobs' data.

Nothing here is needed to serve a real base; nothing of the daemon or the engine is imported.
"""
