"""Search over a user's own videos: embeddings on disk, index, moments, the page."""
