"""One training loop; regimes select what it trains, baselines and ATM are ways of calling it."""
