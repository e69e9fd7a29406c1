"""Configs of experiments, a file for each; `base` documents every field."""
