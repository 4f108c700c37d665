"""`make bench`: figures as ratios of one run, each with its floor beside it and where the time goes.

``python -m bench [NAME]`` runs all benchmarks, or one.
"""

from __future__ import annotations

import json
import os
import sys

from bench import cold_start

HERE = os.path.dirname(os.path.abspath(__file__))
BENCHMARKS = {"cold_start": cold_start.measure}


def main() -> int:
    """Run, print, and keep the results."""
    chosen = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in chosen if name not in BENCHMARKS]
    if unknown:
        print(f"no benchmark {unknown[0]}; there are: {' '.join(BENCHMARKS)}", file=sys.stderr)
        return 1
    figures: dict[str, float] = {}
    detail: dict[str, object] = {}
    for name in chosen:
        found, more = BENCHMARKS[name]()
        figures |= found
        detail[name] = more
    with open(f"{HERE}/results.json", "w") as file:
        json.dump({"figures": figures, "detail": detail}, file, indent=2)
        file.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
