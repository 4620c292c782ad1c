"""The words of a reason: why a cosine is undefined, or 0 by convention.

`diagnostics/metrics.py` writes them into rows, and `tables/` and `plots/` read them there.
"""

REFERENCE = "the reference"  # begins every reason that lies in the reference
ESTIMATE = "the estimate"  # begins every reason that lies in the estimate
ZERO = f"{ESTIMATE} is zero"  # of a cosine that is 0 by convention, as that of a credit of zero is
NOT_FINITE = f"{ESTIMATE} is not finite"  # of a cosine that is NaN, and makes the summaries NaN
