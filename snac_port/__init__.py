"""Reserved for its model family; see README.md."""
