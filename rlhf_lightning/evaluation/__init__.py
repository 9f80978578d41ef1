"""Measuring policies and reward models, and showing what came out."""
