"""The dock "Large volumes": jobs that work block by block, from disk to disk."""
