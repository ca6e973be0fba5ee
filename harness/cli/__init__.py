"""The console script: the words of the command line, its options and completion."""
