"""The planner: what a configuration will cost, known from the model's config alone."""
