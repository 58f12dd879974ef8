"""Shards: a training set of image-caption pairs in a few large files, local or in object storage."""
