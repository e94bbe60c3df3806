"""What minibert exists to show: that this is BERT, and what its starting weights are worth."""
