"""What draws samples: the plan, the inputs, the model, and the only loops over batches."""
