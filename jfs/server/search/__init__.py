"""AQL: ``language`` reads it, ``sql`` answers it from the catalogue. Imports ``wire``."""
