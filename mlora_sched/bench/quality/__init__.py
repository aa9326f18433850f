"""Quality on real rows: what LoRA, MixLoRA and DynMoLE of the paper's sizes reach on questions that were held out.

    python -m mlora_sched.bench.quality --base DIR --data DIR [--out docs/benchmarks/quality.json]

The rest of the benchmark times; this does not. Every method trains on every data set with several seeds, all of them
together in the engine; each adapter is then read back from what was exported and scored on questions that no job has
seen. What is written down are figures of this base and these rows, and no claim about any other.

    questions   rows with a question, its options and the right one
    training    jobs → adapters, together, as `mlora-sched run` trains them
    scoring     an adapter → its loss and its right answers
    plan        sizes and settings
    study       what is trained on what, and the choice of learning rates
    record      what is written down, and its table
"""
