"""Mount a JFrog Artifactory repository of machine-learning models as a directory."""

__version__ = "0.1.0"
