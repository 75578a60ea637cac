"""The two phases of training: noise pretraining, and data training."""
