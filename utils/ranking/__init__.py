"""Ranking: who is found for a query, at which rank, and what that is worth."""
