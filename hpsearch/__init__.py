"""hpsearch: a hyper-parameter search service for image classifiers, coordinated by PostgreSQL."""

__version__ = "0.1.0"
