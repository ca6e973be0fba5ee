"""The plain packed pass, never optimised: what the other backends must equal."""
