"""From data files to token ids, loss masks and packs. No torch here, and transformers only inside functions.

`source` reads files, `shapes` recognises rows, `tasks` numbers their tasks, `jinja`, `plain` and `template` turn them
into text with marked answers, `encode` into tokens, `tokens` keeps the result in a cache on disk, `cursor` says which
rows a step takes. `check` looks through files without a tokenizer.
"""
