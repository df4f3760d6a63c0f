"""Tables that hold numbers, figures, pages and folders. Knows nothing of what is reported."""
