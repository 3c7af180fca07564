"""One small file a kind of change: `NAME`, and `look(case)` -> Finding or None where the kind cannot be asked about.

KINDS is the order of asking, the narrower kind first: a pruned or quantised model would also pass for less.
"""

from weightguard.comparison.kinds import (
    abliterated,
    edited,
    identical,
    lora,
    mixed,
    noise,
    pruned,
    quantised,
    retyped,
    tuned,
    unrelated,
)

KINDS = (identical, retyped, quantised, pruned, mixed, edited, abliterated, unrelated, lora, noise, tuned)
