"""Compute every ratio of benchmark records again from their raw samples, and say where a record says otherwise.

    python docs/benchmarks/recompute.py FILE.json…

Needs Python alone. A file holds one scenario's object, or several under "scenarios", as `mlora-sched bench --json`
prints them. Exits with 1 when any figure differs.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOLERANCE = 1e-9
FORMAT = 1


def differences(record: dict[str, Any]) -> Iterator[str]:
    """What a scenario's record says otherwise than its samples."""
    if record.get("format") != FORMAT:
        yield f"format is {record.get('format')!r}, this script reads {FORMAT}"
        return
    samples = {series["key"]: series["samples"] for series in record["series"]}
    for ratio in record["ratios"]:
        for name, value in again(ratio, samples).items():
            if not math.isclose(value, ratio[name], rel_tol=TOLERANCE):
                yield f"{ratio['name']}: {name} is given as {ratio[name]}, the samples give {value}"
    if record["ratio"] != record["ratios"][0]["value"]:
        yield f"ratio is given as {record['ratio']}, the first ratio is {record['ratios'][0]['value']}"


def again(ratio: dict[str, Any], samples: dict[str, list[float]]) -> dict[str, float]:
    """Median and quartiles of factor · numerator / denominator, round by round."""
    over, under = samples[ratio["numerator"]], samples[ratio["denominator"]]
    quotients = [ratio["factor"] * a / b for a, b in zip(over, under, strict=True)]
    low = high = quotients[0]
    if len(quotients) > 1:
        low, _, high = statistics.quantiles(quotients, n=4, method="inclusive")
    return {"value": statistics.median(quotients), "low": low, "high": high}


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The scenarios of a file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    yield from content["scenarios"].values() if "scenarios" in content else [content]


def main(names: list[str]) -> int:
    """Check files; the exit code."""
    wrong = 0
    for path in map(Path, names):
        for record in records(path):
            found = list(differences(record))
            wrong += len(found)
            for line in found:
                print(f"{path}: {record['scenario']}: {line}")
            for ratio in record["ratios"] if not found else ():
                print(f"{record['scenario']}: {ratio['name']}: {ratio['value']:.4f}")
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
