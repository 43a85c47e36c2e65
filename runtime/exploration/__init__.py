"""Exploration: Hypothesis makes commands of the annotated types of classes, and what breaks is printed as a
specification.

Beside all steps, for tests of applications. Nothing here is imported before `explore` is called, so that Hypothesis is
needed by those alone who use it.
"""
