"""The command line: resolvers, checks, messages, run folders, jobs of a multirun."""
