"""Pictures of a tested run."""
