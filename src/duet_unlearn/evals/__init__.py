"""Measuring: subjects, question sets, scores."""
