"""A run: begun or gone on with, its loop, its folder, its lines."""
