"""Tasks: data with splits, a frozen head, a metric; and suites of them."""
