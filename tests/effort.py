"""How hard the tests try."""

import os

EFFORT = int(os.environ.get("TASKVEC_EFFORT", "1"))
"""How many times as many random examples as the gate draws."""
