"""Training: one loop over a cohort of runs on one frozen base. A plain run is a cohort of one."""
