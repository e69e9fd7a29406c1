"""One ml_collections file per experiment; `base` documents every field."""
