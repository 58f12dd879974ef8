"""Downloads: archives of datasets, repositories of weights."""
