"""Towers, heads, losses, objectives, and the loading of published weights."""
