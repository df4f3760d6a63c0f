"""What the study ``methods`` is made of: records, what computes them, tables and figures."""
