"""Posteriors to sample from, which are no problems: no law at a time is known."""

from .logistic_regression import LogisticRegression

__all__ = ["LogisticRegression"]
