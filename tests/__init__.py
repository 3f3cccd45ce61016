"""The tests mirror src/; what they share is in tests/helpers.py and tests/conftest.py."""
