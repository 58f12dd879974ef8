"""The command line: resolvers, checks, messages, folders of runs, jobs of a sweep."""
