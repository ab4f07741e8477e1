"""Posteriors to sample from. They are not problems: no law at a time is known."""

from .logistic_regression import LogisticRegression

__all__ = ["LogisticRegression"]
