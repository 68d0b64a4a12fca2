"""Models and data by name: ``rsfast.load_model`` and ``rsfast.load_data``, and what they read."""
