"""Mutation testing: small changes to the code, each made alone, and whether the tests notice."""
