"""What is told of a run: records, tables, comparisons, loggers."""
