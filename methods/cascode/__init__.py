"""CasCode: cascaded fast and slow models for efficient semantic code search (2110.07811)."""
