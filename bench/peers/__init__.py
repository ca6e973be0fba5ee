"""What users would do instead, really run beside us: Trainer, TRL, and the loops of processes around them.

`trainer_run`, `trl_run`, `trl_multirun` and what they import from here (`channel`, `task`, `peer`) run in the
peers' own environment; everything else runs in ours.
"""
