"""The data sources that suite files can name."""
