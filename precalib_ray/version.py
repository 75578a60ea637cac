"""The package's version, for those below who must not import the package's front."""

__version__ = "0.1.0"
