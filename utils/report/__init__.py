"""Reports of a run: records, tables, comparisons, loggers."""
