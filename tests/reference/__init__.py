"""Serial references of the distributed algorithms, written from the papers' equations alone."""
