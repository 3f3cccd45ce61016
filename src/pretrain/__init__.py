"""The two pretraining runners."""
