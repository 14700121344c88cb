"""The report of a run: one page of tables and figures."""
