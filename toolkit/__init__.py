"""Compose machine-learning models as typed gRPC microservices. Import from the modules; the root holds the version only."""

__version__ = "0.1.0"
