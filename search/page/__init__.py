"""The page to search with: its server, its texts, and the export of selected images."""
