"""The results store, and what is drawn from it: tables and figures. Reads records only."""
