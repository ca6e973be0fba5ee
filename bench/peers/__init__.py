"""What users would do instead, really run beside us: Trainer, TRL, and the loops of processes around them.

`peer`, `trl_multirun` and what they import from here (`channel`, `cures`) run in the peers' own environment;
everything else runs in ours.
"""
