"""What is the fastest way to certify a model here: measured in turns; and how long a run will then take."""
