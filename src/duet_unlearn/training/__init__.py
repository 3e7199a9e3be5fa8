"""The one training loop, for every method, for relearning and for the lab's pretraining."""
