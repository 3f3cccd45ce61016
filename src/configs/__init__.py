"""The one configuration schema of all runners, and the presets that users edit."""
